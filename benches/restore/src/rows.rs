//! Numbers as rows.

use std::time::Duration;

/// Sorted values' middle and 99th percentile.
fn middle_and_most<T: Copy + Ord + Default>(values: &mut [T]) -> (T, T) {
    values.sort_unstable();
    let at = |permille: usize| values.get((values.len().max(1) - 1) * permille / 1000).copied();
    (at(500).unwrap_or_default(), at(990).unwrap_or_default())
}

/// Prints a row; its median.
pub fn row(what: &str, times: &[Duration]) -> Duration {
    let (middle, most) = middle_and_most(&mut times.to_vec());
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    println!("{what:<64} median {:>9.2} ms   p99 {:>9.2} ms", ms(middle), ms(most));
    middle
}
