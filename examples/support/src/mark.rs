//! Marks for `cargo xtask bench` in the kernels: where the parts of a swap begin and end.

pub use baton_mark::{WAIT, WAITED, mark};

/// The service processor begins to freeze.
pub const FREEZE: i32 = 1;
/// The commit is stored.
pub const COMMITTED: i32 = 2;
/// The next kernel's service processor has seen the commit.
pub const TAKEN: i32 = 3;
/// The first answer's doorbell has been rung.
pub const SERVED: i32 = 4;
/// Devices and interrupts are about to be fenced for a successor, and are.
pub const FENCE: i32 = 5;
/// See [`FENCE`].
pub const FENCED: i32 = 6;
/// A successor's first processor is about to be started.
pub const LAUNCH: i32 = 7;
/// The successor is ready.
pub const READY: i32 = 8;
/// What another kernel had is about to be taken over, and is.
pub const RECLAIM: i32 = 9;
/// See [`RECLAIM`].
pub const RECLAIMED: i32 = 10;
