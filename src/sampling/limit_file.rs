//! A limit that somebody else writes into a file, such as the kubelet for a downward API volume.
//!
//! That volume is replaced as a whole by the swap of one symbolic link, so a file that is kept open would stay the old one for
//! good: it is opened by its path in every look.

use std::ops::RangeInclusive;
use std::path::Path;

use rustix::io::Errno;

use super::readings::Source;
use super::tally::Tally;
use crate::config::settings::{self, Policy};
use crate::host::kept;

/// No machine has less or more memory, so it is another unit that was meant.
const MEMORY: RangeInclusive<u64> = 1 << 20..=(64 << 40) - 1;
/// In thousandths of a processor.
const CPU: RangeInclusive<u64> = 1..=4_096_000;

/// What a limit is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Cpu,
    Memory,
}

impl Kind {
    fn allowed(self) -> RangeInclusive<u64> {
        match self {
            Kind::Cpu => CPU,
            Kind::Memory => MEMORY,
        }
    }

    /// The key of the settings.
    pub fn key(self) -> &'static str {
        match self {
            Kind::Cpu => "policy.cpu.limit",
            Kind::Memory => "policy.memory.limit",
        }
    }
}

/// Why a file gives no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Unreadable(Errno),
    Empty,
    NoNumber,
    Zero,
    /// The amount as it was understood, in bytes or thousandths of a processor.
    OutOfRange(u64),
}

/// The file, and what it said last.
#[derive(Debug)]
pub struct LimitFile {
    kind: Kind,
    file: settings::LimitFile,
    last: Option<u64>,
    fault: Option<Fault>,
}

impl LimitFile {
    /// Reads nothing yet.
    pub fn new(kind: Kind, file: &settings::LimitFile) -> LimitFile {
        LimitFile { kind, file: file.clone(), last: None, fault: None }
    }

    /// Those of the settings: of the CPU, of the memory.
    pub fn of(policy: &Policy) -> [Option<LimitFile>; 2] {
        let of = |kind, file: Option<&settings::LimitFile>| file.map(|file| LimitFile::new(kind, file));
        [of(Kind::Cpu, policy.cpu.limit.file()), of(Kind::Memory, policy.memory.limit.file())]
    }

    /// What it said last counts on.
    pub fn is_same(&self, other: &LimitFile) -> bool {
        self.kind == other.kind && self.file == other.file
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn path(&self) -> &Path {
        &self.file.path
    }

    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// The limit, in bytes or thousandths of a processor: what the file says, else what it said last.
    pub(super) fn read(&mut self, scratch: &mut Vec<u8>, tally: &mut Tally) -> Option<u64> {
        let said = match kept::read_short(&self.file.path, scratch) {
            Ok(text) => parse(text, self.file.unit, &self.kind.allowed()),
            Err(errno) => Err(Fault::Unreadable(errno)),
        };
        match said {
            Ok(amount) => (self.last, self.fault) = (Some(amount), None),
            Err(fault) => {
                let errno = if let Fault::Unreadable(errno) = fault { Some(errno) } else { None };
                tally.failed::<()>(Source::File, errno);
                self.fault = Some(fault);
            }
        }
        self.last
    }

    /// A look for people: what it says now, or why it says nothing.
    ///
    /// # Errors
    /// What is wrong with the file, as [`LimitFile::complaint`].
    pub fn look(&mut self) -> Result<String, String> {
        match (self.read(&mut Vec::new(), &mut Tally::default()), self.fault) {
            (Some(amount), None) => Ok(self.amount(amount)),
            _ => Err(self.complaint().unwrap_or_default()),
        }
    }

    /// What is wrong with it, what was expected and what holds meanwhile. `None` while it can be read.
    pub fn complaint(&self) -> Option<String> {
        let fault = self.fault?;
        let path = self.file.path.display();
        let holds = match self.last {
            Some(last) => format!("the limit it gave last holds, {}", self.amount(last)),
            None => "until it can be read the limit is found out, as with \"auto\"".to_owned(),
        };
        let unit = match (self.kind, self.file.unit) {
            (Kind::Memory, 1) => "bytes".to_owned(),
            (Kind::Memory, unit) => format!("units of {unit} bytes"),
            (Kind::Cpu, 1000) => "processors".to_owned(),
            (Kind::Cpu, _) => "thousandths of a processor".to_owned(),
        };
        let allowed = self.kind.allowed();
        let range = format!("{} to {}", self.amount(*allowed.start()), self.amount(*allowed.end()));
        let found = fault.words(|amount| self.amount(amount));
        Some(format!("{}: {path}: {found}; expected is one decimal number in {unit}, {range}; {holds}", self.kind.key()))
    }

    fn amount(&self, amount: u64) -> String {
        match self.kind {
            Kind::Cpu => format!("{} cores", amount as f64 / 1000.0),
            Kind::Memory => format!("{amount} bytes"),
        }
    }
}

impl Fault {
    /// `amount` writes the amounts of the file's kind.
    fn words(self, amount: impl Fn(u64) -> String) -> String {
        match self {
            Fault::Unreadable(Errno::NOENT | Errno::NOTDIR) => "it is not there".to_owned(),
            Fault::Unreadable(errno) => format!("it cannot be read: {}", std::io::Error::from(errno)),
            Fault::Empty => "it is empty".to_owned(),
            Fault::NoNumber => "it does not hold a decimal number and nothing else".to_owned(),
            Fault::Zero => "it says 0, which leaves nothing to use".to_owned(),
            Fault::OutOfRange(said) => format!("it says {}, which is no limit any machine has", amount(said)),
        }
    }
}

/// One decimal number, with a fraction or without, and at most one line break after it; in units of `unit`.
fn parse(text: &[u8], unit: u64, allowed: &RangeInclusive<u64>) -> Result<u64, Fault> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    if text.is_empty() {
        return Err(Fault::Empty);
    }
    let point = text.iter().position(|byte| *byte == b'.').unwrap_or(text.len());
    let (whole, fraction) = text.split_at_checked(point).ok_or(Fault::NoNumber)?;
    let fraction = match fraction.split_first() {
        None => &[][..],
        Some((_, [])) => return Err(Fault::NoNumber),
        Some((_, digits)) => digits,
    };
    // Twenty digits are more than any amount has, nine more than any fraction needs.
    if whole.is_empty() || whole.len() > 20 || fraction.len() > 9 {
        return Err(Fault::NoNumber);
    }
    let (mut amount, mut places) = (0_u128, 1_u128);
    for byte in whole.iter().chain(fraction) {
        let digit = byte.is_ascii_digit().then(|| u128::from(byte - b'0')).ok_or(Fault::NoNumber)?;
        amount = amount * 10 + digit;
    }
    for _ in fraction {
        places *= 10;
    }
    // At most 29 digits times 2^30: it fits.
    let amount = amount * u128::from(unit) / places;
    match u64::try_from(amount).unwrap_or(u64::MAX) {
        0 => Err(Fault::Zero),
        amount if allowed.contains(&amount) => Ok(amount),
        amount => Err(Fault::OutOfRange(amount)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_file_may_say() {
        type Case<'a> = (&'a str, u64, RangeInclusive<u64>, Result<u64, Fault>);
        let cases: [Case; 22] = [
            ("268435456", 1, MEMORY, Ok(256 << 20)),
            ("268435456\n", 1, MEMORY, Ok(256 << 20)),
            ("256", 1 << 20, MEMORY, Ok(256 << 20)),
            ("0256", 1 << 20, MEMORY, Ok(256 << 20)),
            ("1.5", 1 << 30, MEMORY, Ok(3 << 29)),
            ("500", 1, CPU, Ok(500)),
            ("2", 1000, CPU, Ok(2000)),
            ("0.5\n", 1000, CPU, Ok(500)),
            ("", 1, MEMORY, Err(Fault::Empty)),
            ("\n", 1, MEMORY, Err(Fault::Empty)),
            ("0", 1, MEMORY, Err(Fault::Zero)),
            ("0.0001", 1000, CPU, Err(Fault::Zero)),
            // The unit of the volume is not that of the settings.
            ("256", 1, MEMORY, Err(Fault::OutOfRange(256))),
            ("268435456", 1 << 20, MEMORY, Err(Fault::OutOfRange(1 << 48))),
            ("5000", 1000, CPU, Err(Fault::OutOfRange(5_000_000))),
            ("99999999999999999999", 1 << 30, MEMORY, Err(Fault::OutOfRange(u64::MAX))),
            ("256Mi", 1, MEMORY, Err(Fault::NoNumber)),
            ("500m", 1, CPU, Err(Fault::NoNumber)),
            ("-1", 1, CPU, Err(Fault::NoNumber)),
            ("1 \n", 1, CPU, Err(Fault::NoNumber)),
            ("1\n\n", 1, CPU, Err(Fault::NoNumber)),
            ("1.", 1, CPU, Err(Fault::NoNumber)),
        ];
        for (text, unit, allowed, expected) in cases {
            assert_eq!(parse(text.as_bytes(), unit, &allowed), expected, "{text:?} in units of {unit}");
        }
    }

    fn memory(path: &Path) -> LimitFile {
        LimitFile::new(Kind::Memory, &settings::LimitFile { path: path.to_path_buf(), unit: 1 })
    }

    #[test]
    fn a_volume_that_is_swapped_is_seen_in_the_next_look() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let swap = |name: &str, text: &str| {
            std::fs::create_dir(at(name)).unwrap();
            std::fs::write(at(name).join("memory"), text).unwrap();
            std::os::unix::fs::symlink(name, at("..data_tmp")).unwrap();
            std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
        };
        swap("..1", "268435456");
        std::os::unix::fs::symlink("..data/memory", at("memory")).unwrap();
        let mut file = memory(&at("memory"));
        let mut tally = Tally::default();
        let mut read = |tally: &mut Tally| (file.read(&mut Vec::new(), tally), file.fault());
        assert_eq!(read(&mut tally), (Some(256 << 20), None));
        swap("..2", "536870912\n");
        std::fs::remove_dir_all(at("..1")).unwrap();
        assert_eq!(read(&mut tally), (Some(512 << 20), None));
        assert_eq!(tally.0.iter().sum::<u32>(), 0);
        swap("..3", "a lot");
        assert_eq!(read(&mut tally), (Some(512 << 20), Some(Fault::NoNumber)), "the last good value holds");
        std::fs::remove_dir_all(at("..3")).unwrap();
        assert_eq!(read(&mut tally), (Some(512 << 20), Some(Fault::Unreadable(Errno::NOENT))));
        assert_eq!(tally.0.iter().sum::<u32>(), 2);
        swap("..4", "1073741824");
        assert_eq!(read(&mut tally), (Some(1 << 30), None));
    }

    #[test]
    fn what_is_wrong_is_said_with_the_path_and_what_was_expected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory");
        let mut file = memory(&path);
        let missing = file.look().unwrap_err();
        assert_eq!(
            missing,
            format!(
                "policy.memory.limit: {}: it is not there; expected is one decimal number in bytes, 1048576 bytes to 70368744177663 bytes; \
                 until it can be read the limit is found out, as with \"auto\"",
                path.display()
            )
        );
        std::fs::write(&path, "300000000").unwrap();
        assert_eq!(file.look(), Ok("300000000 bytes".to_owned()));
        std::fs::write(&path, "300").unwrap();
        let absurd = file.look().unwrap_err();
        assert!(absurd.contains("it says 300 bytes, which is no limit any machine has"), "{absurd}");
        assert!(absurd.ends_with("the limit it gave last holds, 300000000 bytes"), "{absurd}");
    }

    #[test]
    fn what_is_no_file_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0).unwrap();
        assert!(memory(&fifo).look().unwrap_err().contains("cannot be read"));
        assert!(memory(folder.path()).look().unwrap_err().contains("cannot be read"));
        assert!(memory(Path::new("/dev/zero")).look().unwrap_err().contains("does not hold a decimal number"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(text in proptest::collection::vec(any::<u8>(), 0..64), unit in 1_u64..=1 << 30) {
            if let Ok(amount) = parse(&text, unit, &MEMORY) {
                prop_assert!(MEMORY.contains(&amount));
            }
        }

        #[test]
        fn near_numbers_are_judged_as_the_standard_library_does(text in "[0-9.]{1,12}\n?") {
            let plain = text.strip_suffix('\n').unwrap_or(&text);
            let is_number = plain.parse::<f64>().is_ok() && !plain.starts_with('.') && !plain.ends_with('.');
            let fits = plain.split_once('.').is_none_or(|(_, fraction)| fraction.len() <= 9);
            prop_assert_eq!(parse(text.as_bytes(), 1, &CPU) != Err(Fault::NoNumber), is_number && fits);
        }

        #[test]
        fn a_limit_is_kept_as_it_is(bytes in MEMORY, end in "\n?") {
            prop_assert_eq!(parse(format!("{bytes}{end}").as_bytes(), 1, &MEMORY), Ok(bytes));
        }

        #[test]
        fn units_are_counted_exactly(whole in 1_u64..60_000, unit in prop::sample::select(vec![1 << 20, 1_000_000, 1 << 30_u64])) {
            prop_assert_eq!(parse(whole.to_string().as_bytes(), unit, &MEMORY), Ok(whole * unit));
        }
    }
}
