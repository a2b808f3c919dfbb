//! The wire format as a contract: golden blobs of every version, and the C header.

mod blobs;
mod c_header;
mod describe;
mod golden;
