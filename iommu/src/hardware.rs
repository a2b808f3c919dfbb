//! The registers of one unit.

use core::fmt;

use crate::{amd, vtd};

/// A register of a unit of either vendor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Register {
    /// Of a VT-d unit.
    VtD(vtd::spec::Register),
    /// Of an AMD-Vi unit.
    AmdVi(amd::spec::Register),
}

impl From<vtd::spec::Register> for Register {
    fn from(register: vtd::spec::Register) -> Self {
        Self::VtD(register)
    }
}

impl From<amd::spec::Register> for Register {
    fn from(register: amd::spec::Register) -> Self {
        Self::AmdVi(register)
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VtD(register) => register.fmt(f),
            Self::AmdVi(register) => write!(f, "the {register} register"),
        }
    }
}

/// A register did not do what it should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum RegisterError {
    /// The register did not reach the state that was waited for in time.
    Timeout {
        /// The register.
        register: Register,
        /// What it held last.
        last: u64,
    },
    /// The register reads as all ones: the unit is switched off or hidden.
    Gone {
        /// The register.
        register: Register,
    },
}

impl RegisterError {
    pub(crate) fn timeout(register: impl Into<Register>, last: impl Into<u64>) -> Self {
        Self::Timeout {
            register: register.into(),
            last: last.into(),
        }
    }

    pub(crate) fn gone(register: impl Into<Register>) -> Self {
        Self::Gone {
            register: register.into(),
        }
    }
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { register, last } => {
                write!(f, "{register} did not settle in time, it holds {last:#x}")
            }
            Self::Gone { register } => write!(f, "{register} reads as all ones"),
        }
    }
}

impl core::error::Error for RegisterError {}
