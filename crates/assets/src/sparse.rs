//! A disk image by its blocks that are not zero.
//!
//! The compact form (all little-endian): u64 size of the image in bytes; u32 number of blocks; then for
//! each block, in ascending order, its u64 index (in units of 4 KiB) and its 4096 bytes. Nothing follows.

use thiserror::Error;

/// Bytes in a block.
pub const BLOCK_SIZE: usize = 4096;

const HEADER: usize = 12;
const ENTRY: usize = 8 + BLOCK_SIZE;

/// A disk image of which only the non-zero blocks are held.
#[derive(Clone, PartialEq, Eq)]
pub struct SparseImage {
    size: u64,
    blocks: Vec<(u64, Box<[u8; BLOCK_SIZE]>)>,
}

/// Why bytes are not a compact image.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SparseImageError {
    /// The header or the block count does not fit the number of bytes.
    #[error("a compact disk image of {bytes} bytes cannot hold the {blocks} blocks it claims")]
    Length {
        /// Bytes given.
        bytes: usize,
        /// Blocks that the header claims.
        blocks: u32,
    },
    /// An index beyond the image's end, or not above the one before it.
    #[error("block {index} of a compact disk image is out of order or beyond its {size} bytes")]
    Index {
        /// The offending index.
        index: u64,
        /// The image's size in bytes.
        size: u64,
    },
}

impl SparseImage {
    /// Reads the compact form.
    pub fn parse(bytes: &[u8]) -> Result<SparseImage, SparseImageError> {
        let short = |blocks| SparseImageError::Length { bytes: bytes.len(), blocks };
        let (size, rest) = bytes.split_first_chunk::<8>().ok_or(short(0))?;
        let (count, rest) = rest.split_first_chunk::<4>().ok_or(short(0))?;
        let (size, count) = (u64::from_le_bytes(*size), u32::from_le_bytes(*count));
        let wanted = usize::try_from(count).ok().and_then(|count| count.checked_mul(ENTRY));
        if wanted.and_then(|entries| entries.checked_add(HEADER)) != Some(bytes.len()) {
            return Err(short(count));
        }
        let mut blocks = Vec::with_capacity(rest.len() / ENTRY);
        let mut next = 0;
        let mut rest = rest;
        while let Some((index, after)) = rest.split_first_chunk::<8>() {
            let index = u64::from_le_bytes(*index);
            let (block, after) = after.split_first_chunk::<BLOCK_SIZE>().ok_or(short(count))?;
            if index < next || index >= size / BLOCK_SIZE as u64 {
                return Err(SparseImageError::Index { index, size });
            }
            blocks.push((index, Box::new(*block)));
            next = index + 1;
            rest = after;
        }
        Ok(SparseImage { size, blocks })
    }

    /// Size of the image in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The blocks that are not zero, ascending: (index in units of [`BLOCK_SIZE`], contents).
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = (u64, &[u8; BLOCK_SIZE])> {
        self.blocks.iter().map(|(index, block)| (*index, &**block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compact(size: u64, indexes: &[u64]) -> Vec<u8> {
        let mut bytes = size.to_le_bytes().to_vec();
        bytes.extend((indexes.len() as u32).to_le_bytes());
        for index in indexes {
            bytes.extend(index.to_le_bytes());
            bytes.extend([(*index as u8).wrapping_add(1); BLOCK_SIZE]);
        }
        bytes
    }

    #[test]
    fn blocks_come_back_in_order() {
        let image = SparseImage::parse(&compact(1 << 20, &[0, 7, 255])).unwrap();
        assert_eq!(image.size(), 1 << 20);
        let found: Vec<_> = image.blocks().map(|(index, block)| (index, block[0], block[4095])).collect();
        assert_eq!(found, [(0, 1, 1), (7, 8, 8), (255, 0, 0)]);
    }

    #[test]
    fn lies_are_refused() {
        let good = compact(1 << 20, &[1, 2]);
        for end in 0..good.len() {
            assert!(SparseImage::parse(&good[..end]).is_err(), "cut at {end}");
        }
        assert!(SparseImage::parse(&[&good[..], &[0]].concat()).is_err());
        let mut many = good.clone();
        many[8..12].fill(0xff);
        assert_eq!(
            SparseImage::parse(&many).err(),
            Some(SparseImageError::Length { bytes: good.len(), blocks: u32::MAX })
        );
        for (indexes, bad) in [(&[2, 1][..], 1), (&[3, 3], 3), (&[256], 256)] {
            let error = SparseImage::parse(&compact(1 << 20, indexes)).err();
            assert_eq!(error, Some(SparseImageError::Index { index: bad, size: 1 << 20 }));
        }
    }
}
