//! The model of AMD IOMMUs is as strict as it says: a correct driver passes, and each mistake
//! bites.

#[path = "amd_strictness/caches.rs"]
mod caches;
#[path = "amd_strictness/commands.rs"]
mod commands;
#[path = "amd_strictness/enabling.rs"]
mod enabling;
#[path = "amd_strictness/events.rs"]
mod events;
#[path = "amd_strictness/hand.rs"]
mod hand;
#[path = "amd_strictness/interrupts.rs"]
mod interrupts;
#[path = "amd_strictness/walk.rs"]
mod walk;
