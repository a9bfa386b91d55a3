//! Batches as they travel: compressed when that makes them smaller, and bounded when they are unpacked.
//!
//! A batch of a few hundred bytes repeats little of itself, but much of what all batches have in common: the
//! envelope of an event. That is what the dictionary knows. It is made from typical events of made-up rooms, see
//! `examples/dictionary.rs`; changing it needs another version of the batch.

use std::borrow::Cow;

use zstd::bulk::{Compressor, Decompressor};

use super::batch::{
    BatchError, COMPRESSED, HEADER_BYTES, Header, LANE_VERSION, RECORDS_BYTES, WITH_DICTIONARY, header,
    parse_header,
};

/// What events have in common, as zstd trains it.
pub const DICTIONARY: &[u8] = include_bytes!("dictionary.zstd");

/// zstd's fastest regular level: the uplink's core is shared, and a network rarely the bottleneck.
pub const COMPRESSION_LEVEL: i32 = 1;

/// Who reads a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Whoever listens to the channel.
    Anyone,
    /// Instances that are known to have the dictionary.
    Peers,
}

/// Packs batches, compressing them when that makes them smaller.
pub struct Packer {
    plain: Compressor<'static>,
    with_dictionary: Compressor<'static>,
    compress_from: usize,
}

impl Packer {
    /// A packer that tries to compress records of `compress_from` bytes and more.
    ///
    /// # Errors
    /// When zstd cannot allocate its contexts.
    pub fn new(compress_from: usize) -> std::io::Result<Self> {
        Ok(Self {
            plain: Compressor::new(COMPRESSION_LEVEL)?,
            with_dictionary: Compressor::with_dictionary(COMPRESSION_LEVEL, DICTIONARY)?,
            compress_from,
        })
    }

    /// The batch of `records` (see [`super::batch::push_event`]).
    pub fn pack(&mut self, head: Header, records: &[u8], readers: Readers) -> Vec<u8> {
        let mut batch = Vec::with_capacity(HEADER_BYTES + records.len());
        batch.extend_from_slice(&header(head));
        let (compressor, flags) = match readers {
            Readers::Anyone => (&mut self.plain, COMPRESSED),
            Readers::Peers => {
                batch[3] = LANE_VERSION;
                (&mut self.with_dictionary, COMPRESSED | WITH_DICTIONARY)
            }
        };
        if (self.compress_from..=RECORDS_BYTES).contains(&records.len())
            && let Ok(packed) = compressor.compress(records)
            && packed.len() + size_of::<u32>() < records.len()
        {
            batch[4] |= flags;
            batch.extend_from_slice(&(records.len() as u32).to_le_bytes());
            batch.extend_from_slice(&packed);
        } else {
            batch.extend_from_slice(records);
        }
        batch
    }
}

/// Unpacks batches.
pub struct Unpacker {
    plain: Decompressor<'static>,
    with_dictionary: Decompressor<'static>,
}

impl Unpacker {
    /// An unpacker.
    ///
    /// # Errors
    /// When zstd cannot allocate its contexts.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { plain: Decompressor::new()?, with_dictionary: Decompressor::with_dictionary(DICTIONARY)? })
    }

    /// The bytes of `batch`'s records, for [`super::batch::parse_records`] or, of a lane,
    /// [`super::batch::parse_sections`].
    ///
    /// # Errors
    /// When the header or the compression is malformed. Nothing larger than [`RECORDS_BYTES`] is
    /// allocated.
    pub fn unpack<'a>(&mut self, batch: &'a [u8]) -> Result<Cow<'a, [u8]>, BatchError> {
        parse_header(batch)?;
        let (version, flags, body) = (batch[3], batch[4], &batch[HEADER_BYTES..]);
        if flags & COMPRESSED == 0 {
            return Ok(Cow::Borrowed(body));
        }
        let (length, packed) = body.split_first_chunk::<4>().ok_or(BatchError::Compression)?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > RECORDS_BYTES {
            return Err(BatchError::Compression);
        }
        let with_dictionary = version == LANE_VERSION && flags & WITH_DICTIONARY != 0;
        let decompressor = if with_dictionary { &mut self.with_dictionary } else { &mut self.plain };
        let mut records = Vec::with_capacity(length);
        match decompressor.decompress_to_buffer(packed, &mut records) {
            Ok(written) if written == length => Ok(Cow::Owned(records)),
            _ => Err(BatchError::Compression),
        }
    }
}

#[cfg(test)]
mod tests;
