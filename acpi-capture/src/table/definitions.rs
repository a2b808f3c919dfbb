//! Where a table defines its remapping units.

/// The most definitions of units in a table that count. Real tables have some thirty at most; the
/// limit bounds what a look-up takes.
pub(crate) const MAX_DEFINITIONS: usize = 128;

/// What tells the units of a table apart: the segment group, and a number that is different for each
/// of the group's.
pub(crate) type UnitKey = (u16, u64);

/// The places of a table's definitions, found in one pass: a table may name a unit more than once,
/// and anywhere among thousands of other structures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Definitions {
    places: [Place; MAX_DEFINITIONS],
    count: usize,
}

/// A key and an offset, in as few bytes as they take.
#[derive(Clone, Copy, Debug)]
struct Place {
    number: u64,
    segment: u16,
    offset: u32,
}

impl Place {
    const fn key(&self) -> UnitKey {
        (self.segment, self.number)
    }

    /// A table has 32 bits of length.
    const fn offset(&self) -> usize {
        self.offset as usize
    }
}

impl Definitions {
    /// The first [`MAX_DEFINITIONS`] of these: each the key of its unit and the offset where it
    /// begins.
    pub(crate) fn new(found: impl Iterator<Item = (UnitKey, usize)>) -> Self {
        const NONE: Place = Place {
            number: 0,
            segment: 0,
            offset: 0,
        };
        let mut definitions = Self {
            places: [NONE; MAX_DEFINITIONS],
            count: 0,
        };
        for (place, ((segment, number), offset)) in definitions.places.iter_mut().zip(found) {
            *place = Place {
                number,
                segment,
                offset: u32::try_from(offset).unwrap_or(u32::MAX),
            };
            definitions.count = definitions.count.saturating_add(1);
        }
        definitions
    }

    fn all(&self) -> &[Place] {
        self.places.get(..self.count).unwrap_or(&[])
    }

    /// How many there are.
    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    /// Where they begin, in the table's order.
    pub(crate) fn offsets(&self) -> impl Iterator<Item = usize> {
        self.all().iter().map(Place::offset)
    }

    /// Where one of them begins.
    pub(crate) fn offset(&self, place: usize) -> Option<usize> {
        self.all().get(place).map(Place::offset)
    }

    /// Where the definitions of the unit with this key begin, in the table's order.
    pub(crate) fn of(&self, key: UnitKey) -> impl Iterator<Item = usize> + Clone {
        let all = self.all().iter();
        all.filter(move |place| place.key() == key)
            .map(Place::offset)
    }

    /// Where the definitions of the unit begin that is defined at a place for the first time;
    /// `None` where it was defined before.
    pub(crate) fn first_of(&self, place: usize) -> Option<impl Iterator<Item = usize>> {
        let key = self.all().get(place)?.key();
        let mut earlier = self.all().iter().take(place);
        (!earlier.any(|other| other.key() == key)).then(|| self.of(key))
    }

    /// The number of a unit, in the order of the units' first definitions.
    pub(crate) fn index_of(&self, key: UnitKey) -> usize {
        let before = self.all().iter().take_while(|place| place.key() != key);
        (0..before.count())
            .filter(|&place| self.first_of(place).is_some())
            .count()
    }
}
