//! Posted writes between devices and units.
//!
//! A device that issues writes without end stands for every moment at which it could have issued
//! one. A write in the fabric is translated when it arrives at the unit, and it can arrive at any
//! moment from then on; so at everything that software does the model tries what would become of a
//! write that arrives now. One run thus looks at every pair of moments of issue and arrival.
//!
//! Two things end it: a device that is no bus master issues nothing more, and the completion of a
//! read from the device pushes ahead what it had issued before.

/// One moment at which a posted write may arrive at the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival<R> {
    /// When the oldest write that may arrive now was issued: after how many things that software did.
    pub issued: u64,
    /// Now.
    pub at: u64,
    /// The device.
    pub sid: u16,
    /// Where it lands in memory, or why it was blocked.
    pub result: Result<u64, R>,
}

#[derive(Clone, Debug)]
struct Stream {
    unit: usize,
    sid: u16,
    iova: u64,
    issuing: bool,
    /// The oldest write that is under way.
    oldest: Option<u64>,
}

#[derive(Clone, Debug)]
pub(crate) struct Fabric<R> {
    streams: Vec<Stream>,
    arrivals: Vec<Arrival<R>>,
}

impl<R> Default for Fabric<R> {
    fn default() -> Self {
        Self {
            streams: Vec::new(),
            arrivals: Vec::new(),
        }
    }
}

impl<R: Copy> Fabric<R> {
    pub(crate) fn stream(&mut self, unit: usize, sid: u16, iova: u64) {
        self.streams.push(Stream {
            unit,
            sid,
            iova,
            issuing: true,
            oldest: None,
        });
    }

    pub(crate) fn set_issuing(&mut self, sid: u16, issuing: bool) {
        for stream in self.streams.iter_mut().filter(|s| s.sid == sid) {
            stream.issuing = issuing;
        }
    }

    /// A read from the device completes: nothing that it issued before is under way any more.
    pub(crate) fn push_ahead(&mut self, sid: u16) {
        for stream in self.streams.iter_mut().filter(|s| s.sid == sid) {
            stream.oldest = None;
        }
    }

    /// Software did something: devices issue, and what is under way may arrive.
    pub(crate) fn advance(
        &mut self,
        now: u64,
        mut arrive: impl FnMut(usize, u16, u64) -> Result<u64, R>,
    ) {
        for stream in &mut self.streams {
            if stream.issuing {
                stream.oldest.get_or_insert(now);
            }
            if let Some(issued) = stream.oldest {
                self.arrivals.push(Arrival {
                    issued,
                    at: now,
                    sid: stream.sid,
                    result: arrive(stream.unit, stream.sid, stream.iova),
                });
            }
        }
    }

    pub(crate) fn take_arrivals(&mut self) -> Vec<Arrival<R>> {
        core::mem::take(&mut self.arrivals)
    }
}
