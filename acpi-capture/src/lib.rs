//! acpi-capture
#![no_std]
