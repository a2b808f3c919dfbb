//! Physical memory as the processors see it and as a unit sees it that does not snoop.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

const LINE: u64 = 64;

/// Page numbers need no defence against crafted keys, and are looked up all the time.
#[derive(Default)]
pub(crate) struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

pub(crate) type ByPage<T> = HashMap<u64, T, BuildHasherDefault<PageHasher>>;

pub(crate) type Page = [u64; 512];

/// Two views of one memory. A processor's store changes the first at once; the second follows when
/// the cache line is written back.
pub(crate) struct Memory {
    processor: ByPage<Box<Page>>,
    written_back: ByPage<Box<Page>>,
    /// How often a processor stored to each page.
    stores: ByPage<u64>,
    /// What memory holds before anyone wrote it.
    untouched: fn(u64) -> u64,
}

impl Memory {
    pub(crate) fn new(rubbish: bool) -> Self {
        Self::holding(if rubbish { Self::rubbish } else { |_| 0 })
    }

    /// Memory that holds this before anyone wrote it.
    pub(crate) fn holding(untouched: fn(u64) -> u64) -> Self {
        Self {
            processor: ByPage::default(),
            written_back: ByPage::default(),
            stores: ByPage::default(),
            untouched,
        }
    }

    /// Rubbish that has the present bits set and points into low memory, so whoever reads it as an
    /// entry goes somewhere.
    fn rubbish(at: u64) -> u64 {
        (Self::mixed(at) >> 24 & 0x00ff_f000) | 0x0666_0003
    }

    /// A number that looks random and is always the same for one address.
    pub(crate) fn mixed(at: u64) -> u64 {
        (at ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }

    fn blank(untouched: fn(u64) -> u64, page: u64) -> Box<Page> {
        Box::new(core::array::from_fn(|i| {
            untouched(page * 4096 + i as u64 * 8)
        }))
    }

    fn read(&self, view: &ByPage<Box<Page>>, at: u64) -> u64 {
        view.get(&(at / 4096))
            .map_or_else(|| (self.untouched)(at), |p| p[(at % 4096 / 8) as usize])
    }

    fn write(&mut self, back: bool, at: u64, value: u64) {
        let view = if back {
            &mut self.written_back
        } else {
            &mut self.processor
        };
        let untouched = self.untouched;
        let page = view
            .entry(at / 4096)
            .or_insert_with(|| Self::blank(untouched, at / 4096));
        page[(at % 4096 / 8) as usize] = value;
    }

    /// A whole page, in the view of a unit that snoops or of one that does not.
    pub(crate) fn page(&self, snoops: bool, page: u64) -> Page {
        let view = if snoops {
            &self.processor
        } else {
            &self.written_back
        };
        view.get(&page)
            .map_or_else(|| *Self::blank(self.untouched, page), |p| **p)
    }

    pub(crate) fn processor(&self, at: u64) -> u64 {
        self.read(&self.processor, at)
    }

    pub(crate) fn written_back(&self, at: u64) -> u64 {
        self.read(&self.written_back, at)
    }

    pub(crate) fn store(&mut self, at: u64, value: u64) {
        *self.stores.entry(at / 4096).or_default() += 1;
        self.write(false, at, value);
    }

    /// As [`store`](Self::store), 16 bytes that are seen at once.
    pub(crate) fn store_pair(&mut self, at: u64, (low, high): (u64, u64)) {
        *self.stores.entry(at / 4096).or_default() += 1;
        self.write(false, at, low);
        self.write(false, at + 8, high);
    }

    /// How often a processor stored to the pages that `length` bytes from `at` are in.
    pub(crate) fn stores_to(&self, at: u64, length: u64) -> u64 {
        let pages = at / 4096..(at + length).div_ceil(4096);
        pages.filter_map(|page| self.stores.get(&page)).sum()
    }

    /// Writes the line that holds `at` back; gives the words that change for a unit that does not
    /// snoop, with their old values.
    pub(crate) fn write_line_back(&mut self, at: u64) -> Vec<(u64, u64)> {
        let line = at / LINE * LINE;
        let mut changed = Vec::new();
        for word in (line..line + LINE).step_by(8) {
            let (new, old) = (self.processor(word), self.written_back(word));
            if new != old {
                changed.push((word, old));
                self.write(true, word, new);
            }
        }
        changed
    }

    /// A write by a device or a unit: snooped, so both views have it.
    pub(crate) fn device_write(&mut self, at: u64, value: u64) {
        self.write(false, at, value);
        self.write(true, at, value);
    }

    /// A whole page, in both views.
    pub(crate) fn device_write_page(&mut self, page: u64, words: Page) {
        self.processor.insert(page, Box::new(words));
        self.written_back.insert(page, Box::new(words));
    }

    pub(crate) fn device_write_bytes(&mut self, at: u64, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            let address = at + i as u64;
            let word = address & !7;
            let mut value = self.processor(word).to_le_bytes();
            value[(address & 7) as usize] = *byte;
            self.device_write(word, u64::from_le_bytes(value));
        }
    }

    pub(crate) fn read_bytes(&self, at: u64, length: usize) -> Vec<u8> {
        (at..at + length as u64)
            .map(|a| self.processor(a & !7).to_le_bytes()[(a & 7) as usize])
            .collect()
    }
}

/// The cache lines that `length` bytes from `at` touch.
pub(crate) fn lines(at: u64, length: u64) -> impl Iterator<Item = u64> {
    let first = at / LINE * LINE;
    let end = if length == 0 { first } else { at + length };
    (first..end).step_by(LINE as usize)
}
