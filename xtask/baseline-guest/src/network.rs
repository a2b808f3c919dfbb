//! Addresses of the one network interface.

use std::error::Error;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use nix::libc;

/// The address QEMU's user network forwards to.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// How long the interface may take to appear once its driver is loaded.
const APPEARANCE: Duration = Duration::from_secs(10);

/// Gives the interface its address and brings it up.
pub(crate) fn configure() -> Result<(), Box<dyn Error>> {
    let name = wait_for_interface()?;
    // Any IPv4 socket serves as the handle of these ioctls.
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    let descriptor = socket.as_raw_fd();
    set(
        descriptor,
        &name,
        libc::SIOCSIFADDR,
        Setting::Address(ADDRESS),
    )?;
    set(
        descriptor,
        &name,
        libc::SIOCSIFNETMASK,
        Setting::Address(NETMASK),
    )?;
    set(descriptor, &name, libc::SIOCSIFFLAGS, Setting::Up)?;
    Ok(())
}

fn wait_for_interface() -> Result<String, Box<dyn Error>> {
    let start = Instant::now();
    loop {
        for entry in fs::read_dir("/sys/class/net")? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "lo" {
                return Ok(name);
            }
        }
        if start.elapsed() > APPEARANCE {
            return Err("no network interface appeared".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[derive(Clone, Copy)]
enum Setting {
    Address(Ipv4Addr),
    Up,
}

fn set(
    descriptor: RawFd,
    interface: &str,
    request: libc::c_ulong,
    setting: Setting,
) -> Result<(), Box<dyn Error>> {
    let mut name: [libc::c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    // The last byte stays zero: the kernel wants a terminated name.
    if interface.len() >= name.len() {
        return Err(format!("interface name {interface:?} is too long").into());
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    let value = match setting {
        Setting::Address(address) => {
            let mut data: [libc::c_char; 14] = [0; 14];
            // `sockaddr_in` after its family: port (2 bytes), then the address.
            for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
                *to = from.cast_signed();
            }
            libc::__c_anonymous_ifr_ifru {
                ifru_addr: libc::sockaddr {
                    sa_family: libc::sa_family_t::try_from(libc::AF_INET)?,
                    sa_data: data,
                },
            }
        }
        Setting::Up => libc::__c_anonymous_ifr_ifru {
            ifru_flags: libc::c_short::try_from(libc::IFF_UP)?,
        },
    };
    let argument = libc::ifreq {
        ifr_name: name,
        ifr_ifru: value,
    };
    // SAFETY: the descriptor is an open socket for the duration of the call, and the
    // three requests used here only read an `ifreq`, which lives until after it.
    let result = unsafe { libc::ioctl(descriptor, request, &raw const argument) };
    nix::errno::Errno::result(result).map_err(|e| format!("{interface}: {e}"))?;
    Ok(())
}
