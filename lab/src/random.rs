//! Numbers that do not resemble each other, the same in every run.

/// Sebastiano Vigna's splitmix64.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 if that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.number() % end).unwrap_or(0)
    }

    /// 1 to `max` bytes.
    pub fn block(&mut self, max: usize) -> Vec<u8> {
        let length = self.below(max) + 1;
        let mut block = Vec::with_capacity(length + 8);
        while block.len() < length {
            block.extend_from_slice(&self.number().to_le_bytes());
        }
        block.truncate(length);
        block
    }
}
