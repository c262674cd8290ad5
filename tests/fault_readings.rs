//! Each source of numbers under each fault: what the reading says then.
#![allow(dead_code)]
mod kernel;
use kernel::*;
use rustix::io::Errno;

#[test]
fn smoke() {
    let got = Kernel::around(|rules| {
        let a = std::fs::read_to_string("/proc/loadavg").map_err(|e| e.raw_os_error());
        rules.set([(Call::Read, "/loadavg", Fault::Fails(Errno::IO))]);
        let b = std::fs::read_to_string("/proc/loadavg").map_err(|e| e.raw_os_error());
        rules.set([(Call::Read, "/loadavg", Fault::Says("hello"))]);
        let c = std::fs::read_to_string("/proc/loadavg").map_err(|e| e.raw_os_error());
        (a, b, c)
    });
    println!("{got:?}");
}
