//! The model of VT-d units is as strict as it says: a correct driver passes, and each mistake bites.

#[path = "strictness/caches.rs"]
mod caches;
#[path = "strictness/enabling.rs"]
mod enabling;
#[path = "strictness/faults.rs"]
mod faults;
#[path = "strictness/hand.rs"]
mod hand;
#[path = "strictness/interrupts.rs"]
mod interrupts;
#[path = "strictness/memory.rs"]
mod memory;
#[path = "strictness/queue.rs"]
mod queue;
#[path = "strictness/walk.rs"]
mod walk;
#[path = "strictness/whole.rs"]
mod whole;
