//! What the measured Linux guest and the host that measures it agree on.
//!
//! The guest serves the demo's key-value protocol on the demo's port. On the same
//! port it answers *control* packets ([`control`]), which have a magic number of
//! their own: with these the host asks which boot of the kernel is running and
//! starts a kexec or a firmware reboot.

pub mod control;
pub mod layout;
pub mod store;
