//! `volume`: data that outlives machines.

use anyhow::{Result, bail};
use serde_json::{Value, json};
use volume::{Volume, Volumes};

use crate::args::{Global, Volume as Words, VolumeVerb};
use crate::launch::Home;
use crate::ui::say::say;
use crate::{ui, volumes};

pub fn volume(words: &Words, global: &Global, home: &Home) -> Result<u8> {
    let all = Volumes::of(&home.dirs);
    let made = match &words.verb {
        VolumeVerb::Ls => return list(&all, global, home),
        VolumeVerb::Inspect { name } => {
            ui::json(&describe(&all.get(name)?, home)?)?;
            return Ok(0);
        }
        VolumeVerb::Rm { names } => {
            names.iter().try_for_each(|name| remove(&all, name, home))?;
            return Ok(0);
        }
        VolumeVerb::Create { name, size: words } => all.create(name, size(words)?)?,
        VolumeVerb::Snapshot { name, copy } => all.snapshot(&all.get(name)?, copy)?,
        VolumeVerb::Grow { name, size: words } => {
            let volume = all.get(name)?;
            volume.grow(size(words)?)?;
            volume
        }
    };
    say!("{}", made.name());
    Ok(0)
}

fn size(words: &str) -> Result<u64> {
    Ok(words.parse::<spec::Size>().map_err(anyhow::Error::msg)?.0)
}

/// Removes one that no machine, running or not, would miss.
fn remove(all: &Volumes, name: &str, home: &Home) -> Result<()> {
    let volume = all.get(name)?;
    if let Some(user) = volumes::users(name, &home.dirs)?.first() {
        let (user, phase) = (user.name(), user.phase().word());
        bail!("volume `{name}` belongs to `{user}`, which is {phase}; `smolvm rm {user}` first");
    }
    volume.remove()?;
    say!("{name}");
    Ok(())
}

fn describe(volume: &Volume, home: &Home) -> Result<Value> {
    let (info, (bytes, used)) = (volume.info()?, volume.sizes()?);
    let users = volumes::users(volume.name(), &home.dirs)?;
    Ok(json!({
        "name": volume.name(),
        "bytes": bytes,
        "used_bytes": used,
        "created_ms": info.created_ms,
        "in_use": volume.is_in_use(),
        "used_by": info.used_by,
        "machines": users.iter().map(|user| user.name()).collect::<Vec<_>>(),
        "copy_of": info.copy_of,
        "path": volume.disk_path().display().to_string(),
    }))
}

fn list(all: &Volumes, global: &Global, home: &Home) -> Result<u8> {
    let rows: Vec<Value> = all.list()?.iter().map(|volume| describe(volume, home)).collect::<Result<_>>()?;
    if global.json {
        ui::json(&Value::Array(rows))?;
        return Ok(0);
    }
    let cell = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let bytes = |row: &Value, key: &str| ui::bytes(row[key].as_u64().unwrap_or_default());
    let line = |row: &Value| {
        let user = if row["in_use"] == true { cell(row, "used_by") } else { String::new() };
        vec![cell(row, "name"), bytes(row, "bytes"), bytes(row, "used_bytes"), user]
    };
    let lines: Vec<Vec<String>> = rows.iter().map(line).collect();
    ui::table(&["NAME", "SIZE", "USED", "IN USE BY"], &lines);
    Ok(0)
}
