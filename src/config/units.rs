//! Sizes, durations, percentages, signals and their like: one type each, read from one TOML value and written back as text.
//!
//! Every unit is read by [`Unit::read`] and nowhere else: `file.rs` reads through it, so do the checks that name the place
//! of a bad value, the JSON Schema takes its pattern and `docs/configuration.md` its description from it.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What one value in the file, the environment or `--set` can be.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    Boolean(bool),
    Integer(i64),
    Float(f64),
    Text(String),
}

impl Scalar {
    /// Numbers may be written with or without quotes: `"2"` and `2` are the same count.
    fn as_text(&self) -> Option<String> {
        match self {
            Scalar::Text(text) => Some(text.trim().to_owned()),
            Scalar::Integer(number) => Some(number.to_string()),
            Scalar::Float(number) => Some(number.to_string()),
            Scalar::Boolean(_) => None,
        }
    }
}

/// Why a value is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// A fragment that follows the value: "has no unit".
    pub why: String,
    /// What was probably meant.
    pub meant: Option<String>,
}

impl Unfit {
    fn because(why: &str) -> Self {
        Unfit { why: why.to_owned(), meant: None }
    }

    /// There is nothing to say but what is allowed.
    fn plain() -> Self {
        Unfit::because("is not understood")
    }
}

/// A kind of value with its own notation.
pub trait Unit: Sized {
    /// The name it goes by in the schema (`x-unit`).
    const NAME: &'static str;
    /// What may be written, for errors and the reference.
    const ALLOWED: &'static str;
    /// The TOML types that can hold it, in JSON Schema's words.
    const TYPES: &'static [&'static str];
    /// A regular expression for the text form.
    const PATTERN: &'static str;

    /// Reads one value.
    ///
    /// # Errors
    /// Says why the value is none of [`Unit::ALLOWED`].
    fn read(value: &Scalar) -> Result<Self, Unfit>;

    /// The value as it would be written in the file.
    fn write(&self) -> Scalar;
}

/// Serde and schema through [`Unit`], so that there is one way in and one way out.
macro_rules! unit {
    ($($unit:ident),+ $(,)?) => {
        $(
            impl<'de> Deserialize<'de> for $unit {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    let value = Scalar::deserialize(deserializer)?;
                    <$unit as Unit>::read(&value).map_err(|unfit| D::Error::custom(format!("{}; allowed: {}", unfit.why, <$unit as Unit>::ALLOWED)))
                }
            }

            impl Serialize for $unit {
                fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    match self.write() {
                        Scalar::Boolean(value) => serializer.serialize_bool(value),
                        Scalar::Integer(value) => serializer.serialize_i64(value),
                        Scalar::Float(value) => serializer.serialize_f64(value),
                        Scalar::Text(value) => serializer.serialize_str(&value),
                    }
                }
            }

            impl schemars::JsonSchema for $unit {
                fn schema_name() -> std::borrow::Cow<'static, str> {
                    <$unit as Unit>::NAME.into()
                }

                fn inline_schema() -> bool {
                    true
                }

                fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                    schemars::json_schema!({
                        "type": <$unit as Unit>::TYPES,
                        "pattern": <$unit as Unit>::PATTERN,
                        "x-unit": <$unit as Unit>::NAME,
                        "x-allowed": <$unit as Unit>::ALLOWED,
                    })
                }
            }
        )+

        /// Reads `value` as the unit called `name` and says what is wrong with it; for a name that is no unit, nothing is.
        pub fn judge(name: &str, value: &Scalar) -> Result<(), Unfit> {
            match name {
                $(<$unit as Unit>::NAME => <$unit as Unit>::read(value).map(|_| ()),)+
                _ => Ok(()),
            }
        }
    };
}

unit!(
    Size,
    Span,
    Every,
    Percent,
    Cores,
    MemoryLimit,
    CpuLimit,
    MemoryDivisor,
    CpuDivisor,
    BytesLine,
    CoresLine,
    SignalName,
    Count,
    RungName,
    Account,
    Address,
    ListenAddress,
    FileMask,
    ResourceAmount,
    ProcessorList,
    IoPriority,
    WebAddress,
    Compression,
    Variable
);

/// Why a value of the wrong TOML type is refused.
fn not_text() -> Unfit {
    Unfit::because("is not text")
}

/// Digits with at most one point, as thousandths of `unit`; exact, and `None` for anything else or too much.
fn scaled(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || whole.len() > 20 || fraction.len() > 9 || number.ends_with('.') {
        return None;
    }
    let places = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let all: u128 = format!("{whole}{fraction}").parse().ok()?;
    Some(all.checked_mul(unit)? / places)
}

/// A plain decimal number: no sign, no exponent, no `inf`.
fn decimal(text: &str) -> Option<f64> {
    scaled(text, 1)?;
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

/// Splits `"30s"` into `"30"` and `"s"`.
fn number_and_rest(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

/// An amount of memory or disk in bytes: `350MB`, `1GiB`, `512M`, `4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// Largest first, so that the first unit that divides a size is the one to write it in.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

impl Unit for Size {
    const NAME: &'static str = "size";
    const ALLOWED: &'static str =
        "a size such as \"350MB\" or \"512M\" (millions of bytes), \"1GiB\" or \"512Mi\" (powers of 1024), or a number of bytes";
    const TYPES: &'static [&'static str] = &["string", "integer"];
    const PATTERN: &'static str = r"^\s*\d+(\.\d+)?\s*([kKmMgGtT]([iI]?[bB]?)|[bB])?\s*$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        let text = value.as_text().ok_or_else(not_text)?;
        let (number, unit) = number_and_rest(&text);
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" => 1_000,
            "m" | "mb" => 1_000_000,
            "g" | "gb" => 1_000_000_000,
            "t" | "tb" => 1_000_000_000_000,
            "ki" | "kib" => 1 << 10,
            "mi" | "mib" => 1 << 20,
            "gi" | "gib" => 1 << 30,
            "ti" | "tib" => 1 << 40,
            _ => return Err(Unfit::plain()),
        };
        let bytes = scaled(number, u128::from(factor)).ok_or_else(Unfit::plain)?;
        u64::try_from(bytes)
            .ok()
            .filter(|bytes| i64::try_from(*bytes).is_ok())
            .map(Size)
            .ok_or_else(|| Unfit::because("is more than any machine has"))
    }

    fn write(&self) -> Scalar {
        Scalar::Text(self.to_string())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = SIZE_UNITS.iter().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor)).unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

/// A length of time in whole milliseconds, at most a hundred years: `250ms`, `30s`, `1h30m`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(u64);

const SPAN_UNITS: [(&str, u64); 6] = [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
const LONGEST_SPAN: u64 = 100 * 365 * 86_400_000;

impl Span {
    pub const fn from_millis(millis: u64) -> Self {
        Span(millis)
    }

    pub const fn from_secs(seconds: u64) -> Self {
        Span(seconds.saturating_mul(1_000))
    }

    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl Unit for Span {
    const NAME: &'static str = "duration";
    const ALLOWED: &'static str = "a duration such as \"250ms\", \"30s\", \"5m\", \"1h30m\" or \"7d\"";
    const TYPES: &'static [&'static str] = &["string", "integer"];
    const PATTERN: &'static str = r"^\s*(0|(\d+(\.\d+)?\s*(ms|s|m|h|d|w)\s*)+)\s*$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        let text = value.as_text().ok_or_else(not_text)?;
        if text == "0" {
            return Ok(Span(0));
        }
        let mut rest = text.as_str();
        let mut total: u128 = 0;
        while !rest.is_empty() {
            let (number, after) = number_and_rest(rest);
            let after = after.trim_start();
            let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
            let (unit, next) = after.split_at(end);
            if unit.is_empty() && decimal(number).is_some() {
                return Err(Unfit::because("has no unit"));
            }
            let (_, factor) = SPAN_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(Unfit::plain)?;
            let part = scaled(number, u128::from(*factor)).ok_or_else(Unfit::plain)?;
            total = total.checked_add(part).ok_or_else(|| Unfit::because("is longer than a hundred years"))?;
            rest = next.trim_start();
        }
        match u64::try_from(total) {
            _ if text.is_empty() => Err(Unfit::because("is empty")),
            Ok(millis) if millis <= LONGEST_SPAN => Ok(Span(millis)),
            _ => Err(Unfit::because("is longer than a hundred years")),
        }
    }

    fn write(&self) -> Scalar {
        Scalar::Text(self.to_string())
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.0;
        for (unit, factor) in SPAN_UNITS.into_iter().filter(|(unit, _)| *unit != "w") {
            if rest >= factor {
                write!(f, "{}{unit}", rest / factor)?;
                rest %= factor;
            }
        }
        Ok(())
    }
}

/// How often, or never at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    Span(Span),
    Never,
}

impl Unit for Every {
    const NAME: &'static str = "every";
    const ALLOWED: &'static str = "a duration such as \"30s\" or \"10m\", or \"never\"";
    const TYPES: &'static [&'static str] = &["string", "integer"];
    const PATTERN: &'static str = r"^\s*(never|0|(\d+(\.\d+)?\s*(ms|s|m|h|d|w)\s*)+)\s*$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        match value {
            Scalar::Text(text) if text.trim() == "never" => Ok(Every::Never),
            _ => Span::read(value).map(Every::Span),
        }
    }

    fn write(&self) -> Scalar {
        match self {
            Every::Never => Scalar::Text("never".to_owned()),
            Every::Span(span) => span.write(),
        }
    }
}

/// A percentage from 0 to 100, kept as it was written: 80 for `"80%"`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Percent(pub f64);

impl Percent {
    /// 0.8 for `"80%"`.
    pub fn share(self) -> f64 {
        self.0 / 100.0
    }

    fn from_text(text: &str) -> Option<f64> {
        decimal(text.strip_suffix('%')?.trim_end())
    }
}

impl Unit for Percent {
    const NAME: &'static str = "percentage";
    const ALLOWED: &'static str = "a percentage from \"0%\" to \"100%\"";
    const TYPES: &'static [&'static str] = &["string"];
    const PATTERN: &'static str = r"^\s*\d+(\.\d+)?\s*%\s*$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        let Scalar::Text(text) = value else { return Err(Unfit::because("has no percent sign")) };
        match Percent::from_text(text.trim()) {
            Some(percent) if percent <= 100.0 => Ok(Percent(percent)),
            Some(_) => Err(Unfit::because("is over 100 %")),
            None => Err(Unfit::plain()),
        }
    }

    fn write(&self) -> Scalar {
        Scalar::Text(self.to_string())
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// A number of processors, more than 0 and at most 4096: `1.5`, `"1.5"` or `"150%"`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Cores(pub f64);

const MOST_CORES: f64 = 4096.0;

impl Unit for Cores {
    const NAME: &'static str = "cores";
    const ALLOWED: &'static str = "a number of processors such as 1.5 or \"150%\", more than 0 and at most 4096";
    const TYPES: &'static [&'static str] = &["string", "number"];
    const PATTERN: &'static str = r"^\s*\d+(\.\d+)?\s*%?\s*$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        let text = value.as_text().ok_or_else(not_text)?;
        let cores = if text.ends_with('%') { Percent::from_text(&text).map(|percent| percent / 100.0) } else { decimal(&text) };
        match cores {
            Some(cores) if cores > 0.0 && cores <= MOST_CORES => Ok(Cores(cores)),
            _ => Err(Unfit::plain()),
        }
    }

    fn write(&self) -> Scalar {
        Scalar::Text(self.to_string())
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The memory everything is measured against: found out, or given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLimit {
    Auto,
    Size(Size),
}

impl Unit for MemoryLimit {
    const NAME: &'static str = "memory limit";
    const ALLOWED: &'static str = "\"auto\", or a size such as \"512MB\" or \"1GiB\"";
    const TYPES: &'static [&'static str] = &["string", "integer"];
    const PATTERN: &'static str = r"^\s*(auto|\d+(\.\d+)?\s*([kKmMgGtT]([iI]?[bB]?)|[bB])?)\s*$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        match value {
            Scalar::Text(text) if text.trim() == "auto" => Ok(MemoryLimit::Auto),
            _ => match Size::read(value)? {
                Size(0) => Err(Unfit::because("leaves nothing to use")),
                size => Ok(MemoryLimit::Size(size)),
            },
        }
    }

    fn write(&self) -> Scalar {
        match self {
            MemoryLimit::Auto => Scalar::Text("auto".to_owned()),
            MemoryLimit::Size(size) => size.write(),
        }
    }
}

/// The processors everything is measured against: found out, or given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CpuLimit {
    Auto,
    Cores(Cores),
}

impl Unit for CpuLimit {
    const NAME: &'static str = "cpu limit";
    const ALLOWED: &'static str = "\"auto\", or a number of processors such as 1.5 or \"150%\", more than 0 and at most 4096";
    const TYPES: &'static [&'static str] = &["string", "number"];
    const PATTERN: &'static str = r"^\s*(auto|\d+(\.\d+)?\s*%?)\s*$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        match value {
            Scalar::Text(text) if text.trim() == "auto" => Ok(CpuLimit::Auto),
            _ => Cores::read(value).map(CpuLimit::Cores),
        }
    }

    fn write(&self) -> Scalar {
        match self {
            CpuLimit::Auto => Scalar::Text("auto".to_owned()),
            CpuLimit::Cores(cores) => cores.write(),
        }
    }
}

/// What one is in a file that holds a limit of memory, in bytes: the word and the values of Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryDivisor(pub u64);

const MEMORY_DIVISORS: [(&str, u64); 7] =
    [("1", 1), ("1k", 1_000), ("1M", 1_000_000), ("1G", 1_000_000_000), ("1Ki", 1 << 10), ("1Mi", 1 << 20), ("1Gi", 1 << 30)];

impl Unit for MemoryDivisor {
    const NAME: &'static str = "memory divisor";
    const ALLOWED: &'static str = "\"1\" (bytes), \"1k\", \"1M\", \"1G\", \"1Ki\", \"1Mi\" or \"1Gi\", as in the volume";
    const TYPES: &'static [&'static str] = &["string", "integer"];
    const PATTERN: &'static str = r"^\s*1([kMG]|[KMG]i)?\s*$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        let text = value.as_text().ok_or_else(not_text)?;
        MEMORY_DIVISORS.iter().find(|(word, _)| *word == text).map(|(_, bytes)| MemoryDivisor(*bytes)).ok_or_else(Unfit::plain)
    }

    fn write(&self) -> Scalar {
        let word = MEMORY_DIVISORS.iter().find(|(_, bytes)| *bytes == self.0).map_or("1", |(word, _)| word);
        Scalar::Text(word.to_owned())
    }
}

/// What one is in a file that holds a limit of the CPU, in thousandths of a processor: the word and the values of Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuDivisor(pub u64);

impl Unit for CpuDivisor {
    const NAME: &'static str = "cpu divisor";
    const ALLOWED: &'static str = "\"1\" (processors) or \"1m\" (thousandths of one), as in the volume";
    const TYPES: &'static [&'static str] = &["string", "integer"];
    const PATTERN: &'static str = r"^\s*1m?\s*$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        match value.as_text().ok_or_else(not_text)?.as_str() {
            "1" => Ok(CpuDivisor(1000)),
            "1m" => Ok(CpuDivisor(1)),
            _ => Err(Unfit::plain()),
        }
    }

    fn write(&self) -> Scalar {
        Scalar::Text(if self.0 == 1 { "1m" } else { "1" }.to_owned())
    }
}

/// A percentage over 0 and up to 100.
fn line_percent(text: &str) -> Option<Result<Percent, Unfit>> {
    if !text.ends_with('%') {
        return None;
    }
    Some(match Percent::from_text(text) {
        Some(percent) if percent > 0.0 && percent <= 100.0 => Ok(Percent(percent)),
        Some(_) => Err(Unfit::because("is outside 0 % to 100 %")),
        None => Err(Unfit::plain()),
    })
}

/// A line for memory or a disk: a share of the limit, or bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BytesLine {
    Percent(Percent),
    Size(Size),
}

impl Unit for BytesLine {
    const NAME: &'static str = "line";
    const ALLOWED: &'static str = "a percentage of the limit over \"0%\" and up to \"100%\", or a size such as \"350MB\" or \"1GiB\"";
    const TYPES: &'static [&'static str] = &["string", "integer"];
    const PATTERN: &'static str = r"^\s*\d+(\.\d+)?\s*(%|[kKmMgGtT]([iI]?[bB]?)|[bB])?\s*$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        let text = value.as_text().ok_or_else(not_text)?;
        match line_percent(&text) {
            Some(percent) => percent.map(BytesLine::Percent),
            // A bare 80 is far more often a forgotten percent sign than eighty bytes.
            None if decimal(&text).is_some_and(|number| number <= 100.0) => Err(Unfit::because("has no unit")),
            None => Size::read(value).map(BytesLine::Size),
        }
    }

    fn write(&self) -> Scalar {
        Scalar::Text(self.to_string())
    }
}

impl fmt::Display for BytesLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BytesLine::Percent(percent) => percent.fmt(f),
            BytesLine::Size(size) => size.fmt(f),
        }
    }
}

/// Lines in processors end here.
const CORES_LINE_END: f64 = 50.0;

/// A line for the CPU: a share of the limit, or processors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CoresLine {
    Percent(Percent),
    Cores(Cores),
}

impl Unit for CoresLine {
    const NAME: &'static str = "cpu line";
    const ALLOWED: &'static str =
        "a percentage of the limit over \"0%\" and up to \"100%\", or a number of processors such as 1.5, under 50";
    const TYPES: &'static [&'static str] = &["string", "number"];
    const PATTERN: &'static str = r"^\s*\d+(\.\d+)?\s*%?\s*$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        let text = value.as_text().ok_or_else(not_text)?;
        match line_percent(&text) {
            Some(percent) => percent.map(CoresLine::Percent),
            // 80 is far more often a forgotten percent sign than eighty processors.
            None => match Cores::read(value)? {
                Cores(cores) if cores >= CORES_LINE_END => Err(Unfit::because("has no percent sign")),
                cores => Ok(CoresLine::Cores(cores)),
            },
        }
    }

    fn write(&self) -> Scalar {
        Scalar::Text(self.to_string())
    }
}

impl fmt::Display for CoresLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CoresLine::Percent(percent) => percent.fmt(f),
            CoresLine::Cores(cores) => cores.fmt(f),
        }
    }
}

/// A signal by name or number: `SIGUSR1`, `USR1`, `10`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalName(pub i32);

const SIGNALS: [(&str, i32); 31] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

impl Unit for SignalName {
    const NAME: &'static str = "signal";
    const ALLOWED: &'static str = "a signal such as \"SIGUSR1\", \"USR1\", \"SIGRTMIN+3\" or its number, 1 to 64";
    const TYPES: &'static [&'static str] = &["string", "integer"];
    const PATTERN: &'static str = r"^\s*((SIG)?[A-Z][A-Z0-9]+([+-]\d+)?|\d+)\s*$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        let text = value.as_text().ok_or_else(not_text)?.to_ascii_uppercase();
        let name = text.strip_prefix("SIG").unwrap_or(&text);
        let number = if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
            Some(*number)
        } else if name == "RTMIN" {
            Some(libc::SIGRTMIN())
        } else if name == "RTMAX" {
            Some(libc::SIGRTMAX())
        } else if let Some(plus) = name.strip_prefix("RTMIN+") {
            plus.parse::<u8>().ok().map(|plus| libc::SIGRTMIN() + i32::from(plus))
        } else if let Some(minus) = name.strip_prefix("RTMAX-") {
            minus.parse::<u8>().ok().map(|minus| libc::SIGRTMAX() - i32::from(minus)).filter(|number| *number >= libc::SIGRTMIN())
        } else {
            name.parse().ok()
        };
        match number {
            Some(number) if (1..=libc::SIGRTMAX()).contains(&number) => Ok(SignalName(number)),
            Some(_) => Err(Unfit::because("is no signal of this system")),
            None => {
                let meant = nearest(name, SIGNALS.iter().map(|(known, _)| *known)).map(|known| format!("SIG{known}"));
                Err(Unfit { why: "is no signal".to_owned(), meant })
            }
        }
    }

    fn write(&self) -> Scalar {
        Scalar::Text(self.to_string())
    }
}

impl fmt::Display for SignalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIGNALS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => write!(f, "SIG{name}"),
            None if self.0 == libc::SIGRTMIN() => f.write_str("SIGRTMIN"),
            None if self.0 > libc::SIGRTMIN() => write!(f, "SIGRTMIN+{}", self.0 - libc::SIGRTMIN()),
            None => write!(f, "{}", self.0),
        }
    }
}

/// How many of a worker: a number, or by the processors it may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    Number(u32),
    Cpus { plus: u32 },
}

/// More replicas of one worker than this is a slip of the keyboard.
pub const MOST_REPLICAS: u32 = 4096;

impl Unit for Count {
    const NAME: &'static str = "count";
    const ALLOWED: &'static str = "a number from 0 to 4096, \"cpus\", or \"cpus+1\" up to \"cpus+4096\"";
    const TYPES: &'static [&'static str] = &["string", "integer"];
    const PATTERN: &'static str = r"^\s*(\d+|cpus(\s*\+\s*\d+)?)\s*$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        let text = value.as_text().ok_or_else(not_text)?;
        let number = |text: &str| -> Result<u32, Unfit> {
            let text = text.trim();
            if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(Unfit::plain());
            }
            text.parse().ok().filter(|number| *number <= MOST_REPLICAS).ok_or_else(|| Unfit::because("is over 4096"))
        };
        match text.strip_prefix("cpus").map(str::trim_start) {
            Some("") => Ok(Count::Cpus { plus: 0 }),
            Some(rest) => number(rest.strip_prefix('+').ok_or_else(Unfit::plain)?).map(|plus| Count::Cpus { plus }),
            None => number(&text).map(Count::Number),
        }
    }

    fn write(&self) -> Scalar {
        match self {
            Count::Number(number) => Scalar::Integer(i64::from(*number)),
            Count::Cpus { plus: 0 } => Scalar::Text("cpus".to_owned()),
            Count::Cpus { plus } => Scalar::Text(format!("cpus+{plus}")),
        }
    }
}

/// One step of a ladder by its word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RungName(pub String);

/// Every rung that is a word of its own; `job:NAME` comes beside them.
pub const RUNGS: [&str; 6] = ["notify", "shed", "reclaim", "throttle", "recycle", "kill"];

impl Unit for RungName {
    const NAME: &'static str = "rung";
    const ALLOWED: &'static str = "\"notify\", \"shed\", \"reclaim\", \"throttle\", \"recycle\", \"kill\" or \"job:NAME\"";
    const TYPES: &'static [&'static str] = &["string"];
    const PATTERN: &'static str = r"^(notify|shed|reclaim|throttle|recycle|kill|job:.+)$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        let Scalar::Text(text) = value else { return Err(not_text()) };
        if RUNGS.contains(&text.as_str()) || text.strip_prefix("job:").is_some_and(|name| !name.is_empty()) {
            return Ok(RungName(text.clone()));
        }
        Err(Unfit { why: "is no rung".to_owned(), meant: nearest(text, RUNGS).map(str::to_owned) })
    }

    fn write(&self) -> Scalar {
        Scalar::Text(self.0.clone())
    }
}

/// How a copy is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    /// 1 to 19.
    Zstd(i32),
}

/// What `zstd` alone means.
const USUAL_ZSTD: i32 = 3;

impl Unit for Compression {
    const NAME: &'static str = "compression";
    const ALLOWED: &'static str = "\"zstd\", \"zstd:1\" (fastest) to \"zstd:19\" (smallest, and takes much memory), or \"none\"";
    const TYPES: &'static [&'static str] = &["string"];
    const PATTERN: &'static str = r"^(none|zstd(:([1-9]|1[0-9]))?)$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        let Scalar::Text(text) = value else { return Err(not_text()) };
        match text.as_str() {
            "none" => Ok(Compression::None),
            "zstd" => Ok(Compression::Zstd(USUAL_ZSTD)),
            other => {
                let level = other.strip_prefix("zstd:").and_then(|level| level.parse().ok()).filter(|level| (1..=19).contains(level));
                level
                    .map(Compression::Zstd)
                    .ok_or_else(|| Unfit { meant: nearest(other, ["zstd", "none"]).map(str::to_owned), ..Unfit::plain() })
            }
        }
    }

    fn write(&self) -> Scalar {
        Scalar::Text(match self {
            Compression::None => "none".to_owned(),
            Compression::Zstd(USUAL_ZSTD) => "zstd".to_owned(),
            Compression::Zstd(level) => format!("zstd:{level}"),
        })
    }
}

/// A user or group, by name or number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account(pub String);

impl Unit for Account {
    const NAME: &'static str = "account";
    const ALLOWED: &'static str = "a name or a number";
    const TYPES: &'static [&'static str] = &["string", "integer"];
    const PATTERN: &'static str = r"^[^:\s]+$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        let text = match value {
            Scalar::Text(text) => text.clone(),
            Scalar::Integer(number) if u32::try_from(*number).is_ok() => number.to_string(),
            _ => return Err(Unfit::plain()),
        };
        if text.is_empty() || text.contains(|c: char| c == ':' || c.is_whitespace() || c.is_control()) {
            Err(Unfit::plain())
        } else {
            Ok(Account(text))
        }
    }

    fn write(&self) -> Scalar {
        Scalar::Text(self.0.clone())
    }
}

/// An address to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub SocketAddr);

impl Unit for Address {
    const NAME: &'static str = "address";
    const ALLOWED: &'static str = "an IP address and a port such as \"127.0.0.1:18760\", \"0.0.0.0:18760\" or \"[::1]:18760\"";
    const TYPES: &'static [&'static str] = &["string"];
    const PATTERN: &'static str = r"^(localhost|[0-9.]+|\[[0-9a-fA-F:.%]+\]):\d+$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        let Scalar::Text(text) = value else { return Err(not_text()) };
        let numeric = match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => text.clone(),
        };
        numeric.parse().map(Address).map_err(|_| Unfit::plain())
    }

    fn write(&self) -> Scalar {
        Scalar::Text(self.0.to_string())
    }
}

/// An address a worker listens on, bound by the daemon: TCP by number, or a Unix socket by its path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// The longest path of a Unix socket: `sun_path` less its NUL.
const LONGEST_SOCKET_PATH: usize = 107;

impl Unit for ListenAddress {
    const NAME: &'static str = "listen-address";
    const ALLOWED: &'static str =
        "an IP address and a port such as \"0.0.0.0:8000\" or \"[::]:8000\", or the path of a Unix socket such as \"/run/app.sock\"";
    const TYPES: &'static [&'static str] = &["string"];
    const PATTERN: &'static str = r"^((localhost|[0-9.]+|\[[0-9a-fA-F:.%]+\]):\d+|(unix:)?/.+)$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        let Scalar::Text(text) = value else { return Err(not_text()) };
        let path = text.strip_prefix("unix:").unwrap_or(text);
        if path.starts_with('/') {
            return match path {
                _ if path.contains('\0') => Err(Unfit::because("holds a NUL byte")),
                _ if path.len() > LONGEST_SOCKET_PATH => Err(Unfit::because("is longer than the 107 bytes of a socket's path")),
                _ => Ok(ListenAddress::Unix(path.into())),
            };
        }
        match Address::read(value)?.0 {
            address if address.port() == 0 => Err(Unfit::because("has no port")),
            address => Ok(ListenAddress::Tcp(address)),
        }
    }

    fn write(&self) -> Scalar {
        Scalar::Text(self.to_string())
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Tcp(address) => address.fmt(f),
            ListenAddress::Unix(path) => path.display().fmt(f),
        }
    }
}

/// The permissions a new file is not given, as `umask` takes them: octal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMask(pub u32);

impl Unit for FileMask {
    const NAME: &'static str = "file-mask";
    const ALLOWED: &'static str = "three or four octal digits in quotes, such as \"0027\"";
    const TYPES: &'static [&'static str] = &["string"];
    const PATTERN: &'static str = r"^0?[0-7]{3}$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        // A number without quotes is decimal: 27 would be 033.
        let Scalar::Text(text) = value else { return Err(not_text()) };
        let digits = text.strip_prefix('0').filter(|rest| rest.len() == 3).unwrap_or(text);
        if digits.len() != 3 || !digits.bytes().all(|byte| (b'0'..=b'7').contains(&byte)) {
            return Err(Unfit::plain());
        }
        u32::from_str_radix(digits, 8).map(FileMask).map_err(|_| Unfit::plain())
    }

    fn write(&self) -> Scalar {
        Scalar::Text(format!("{:04o}", self.0))
    }
}

/// What `setrlimit` takes: a number, a size in bytes, or no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceAmount {
    Unlimited,
    Amount(u64),
}

impl Unit for ResourceAmount {
    const NAME: &'static str = "resource-amount";
    const ALLOWED: &'static str = "a number, a size such as \"64MiB\", or \"unlimited\"";
    const TYPES: &'static [&'static str] = &["string", "integer"];
    const PATTERN: &'static str = r"^\s*(unlimited|\d+(\.\d+)?\s*([kKmMgGtT]([iI]?[bB]?)|[bB])?)\s*$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        match value {
            Scalar::Text(text) if text.trim() == "unlimited" => Ok(ResourceAmount::Unlimited),
            _ => Size::read(value).map(|size| ResourceAmount::Amount(size.0)),
        }
    }

    fn write(&self) -> Scalar {
        match self {
            ResourceAmount::Unlimited => Scalar::Text("unlimited".to_owned()),
            ResourceAmount::Amount(amount) => i64::try_from(*amount).map_or_else(|_| Size(*amount).write(), Scalar::Integer),
        }
    }
}

/// Processors by number, as `taskset` and the kernel write them: `0-3,6`. Ascending, each once, never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessorList(pub Vec<u32>);

/// The kernel's own largest `NR_CPUS` is 8192; what fits into the set that `sched_setaffinity` is given here is 1024.
const MOST_PROCESSORS: u32 = 1024;

impl Unit for ProcessorList {
    const NAME: &'static str = "processor-list";
    const ALLOWED: &'static str = "processors by number, such as \"0\", \"0-3\" or \"0,2,4-5\"; the highest is 1023";
    const TYPES: &'static [&'static str] = &["string", "integer"];
    const PATTERN: &'static str = r"^\s*\d+(-\d+)?(\s*,\s*\d+(-\d+)?)*\s*$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        let text = value.as_text().ok_or_else(not_text)?;
        let number = |text: &str| -> Result<u32, Unfit> {
            let text = text.trim();
            if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(Unfit::plain());
            }
            text.parse().ok().filter(|number| *number < MOST_PROCESSORS).ok_or_else(|| Unfit::because("is over 1023"))
        };
        let mut list = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return Err(Unfit::because("counts backwards"));
            }
            list.extend(first..=last);
        }
        list.sort_unstable();
        list.dedup();
        Ok(ProcessorList(list))
    }

    fn write(&self) -> Scalar {
        let mut parts: Vec<(u32, u32)> = Vec::new();
        for number in &self.0 {
            match parts.last_mut() {
                Some((_, last)) if *last + 1 == *number => *last = *number,
                _ => parts.push((*number, *number)),
            }
        }
        let part = |(first, last): &(u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
        Scalar::Text(parts.iter().map(part).collect::<Vec<_>>().join(","))
    }
}

/// The order in which the disk is given, as `ionice` knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoPriority {
    /// 0 (first) to 7.
    RealTime(u8),
    /// 0 (first) to 7; 4 unless said otherwise.
    BestEffort(u8),
    /// Only when nobody else wants the disk.
    Idle,
}

impl Unit for IoPriority {
    const NAME: &'static str = "io-priority";
    const ALLOWED: &'static str =
        "\"idle\", \"best-effort\" or \"best-effort:0\" (first) to \"best-effort:7\", \"realtime:0\" to \"realtime:7\"";
    const TYPES: &'static [&'static str] = &["string"];
    const PATTERN: &'static str = r"^\s*(idle|(best-effort|realtime)(:[0-7])?)\s*$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        let Scalar::Text(text) = value else { return Err(not_text()) };
        let (class, level) = text.trim().split_once(':').unwrap_or((text.trim(), "4"));
        let level = level.parse::<u8>().ok().filter(|level| *level <= 7).ok_or_else(Unfit::plain);
        match class {
            "idle" if !text.contains(':') => Ok(IoPriority::Idle),
            "best-effort" => level.map(IoPriority::BestEffort),
            "realtime" => level.map(IoPriority::RealTime),
            _ => Err(Unfit {
                why: "is not understood".to_owned(),
                meant: nearest(class, ["idle", "best-effort", "realtime"]).map(str::to_owned),
            }),
        }
    }

    fn write(&self) -> Scalar {
        Scalar::Text(match self {
            IoPriority::Idle => "idle".to_owned(),
            IoPriority::BestEffort(level) => format!("best-effort:{level}"),
            IoPriority::RealTime(level) => format!("realtime:{level}"),
        })
    }
}

/// Where a worker answers over HTTP: `http://127.0.0.1:8000/health`. Only what needs no name server and no certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebAddress {
    pub address: SocketAddr,
    /// With its slash, and the query if there is one.
    pub path: String,
}

impl Unit for WebAddress {
    const NAME: &'static str = "web-address";
    const ALLOWED: &'static str = "an address such as \"http://127.0.0.1:8000/health\": http, an IP address or localhost, a path";
    const TYPES: &'static [&'static str] = &["string"];
    const PATTERN: &'static str = r"^http://(localhost|[0-9.]+|\[[0-9a-fA-F:.%]+\])(:\d+)?(/\S*)?$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        let Scalar::Text(text) = value else { return Err(not_text()) };
        if text.starts_with("https://") {
            return Err(Unfit::because("is encrypted: a check of readiness knows no certificates"));
        }
        let rest = text.strip_prefix("http://").ok_or_else(Unfit::plain)?;
        let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        if path.chars().any(|c| c.is_whitespace() || c.is_control()) || !path.is_ascii() {
            return Err(Unfit::because("has a path with blanks or letters beyond ASCII"));
        }
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
        let host = if has_port { host.to_owned() } else { format!("{host}:80") };
        let address = Address::read(&Scalar::Text(host))?.0;
        if address.port() == 0 {
            return Err(Unfit::because("has no port"));
        }
        Ok(WebAddress { address, path: path.to_owned() })
    }

    fn write(&self) -> Scalar {
        Scalar::Text(format!("http://{}{}", self.address, self.path))
    }
}

/// The value of a variable in a worker's environment; numbers and booleans become text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable(pub String);

impl Unit for Variable {
    const NAME: &'static str = "variable";
    const ALLOWED: &'static str = "text, a number or a boolean";
    const TYPES: &'static [&'static str] = &["string", "number", "boolean"];
    const PATTERN: &'static str = r"^[^\u0000]*$";

    fn read(value: &Scalar) -> Result<Self, Unfit> {
        match value {
            Scalar::Boolean(value) => Ok(Variable(value.to_string())),
            Scalar::Text(text) if text.contains('\0') => Err(Unfit::because("holds a NUL byte")),
            Scalar::Text(text) => Ok(Variable(text.clone())),
            number => number.as_text().map(Variable).ok_or_else(Unfit::plain),
        }
    }

    fn write(&self) -> Scalar {
        Scalar::Text(self.0.clone())
    }
}

/// The known name most like `name`, if one is so alike that it may have been meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    let slips = (lower.chars().count() / 3).max(1);
    known
        .into_iter()
        .filter(|candidate| candidate.chars().count() > 2)
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= slips)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(text: &str) -> Scalar {
        Scalar::Text(text.to_owned())
    }

    #[test]
    fn sizes() {
        let cases: [(&str, Option<u64>); 17] = [
            ("350MB", Some(350_000_000)),
            ("1GiB", Some(1 << 30)),
            ("512M", Some(512_000_000)),
            ("512Mi", Some(512 << 20)),
            ("1.5GiB", Some(3 << 29)),
            ("64 kb", Some(64_000)),
            ("4096", Some(4096)),
            ("0", Some(0)),
            ("", None),
            ("MB", None),
            ("-1MB", None),
            ("1e3", None),
            ("1..5GB", None),
            ("5 parsecs", None),
            ("80%", None),
            ("9999999TiB", None),
            ("99999999999999999999999999", None),
        ];
        for (written, meant) in cases {
            assert_eq!(Size::read(&text(written)).ok().map(|size| size.0), meant, "{written}");
        }
        assert_eq!(Size::read(&Scalar::Integer(-5)).ok(), None);
    }

    #[test]
    fn durations() {
        let cases: [(&str, Option<u64>); 15] = [
            ("250ms", Some(250)),
            ("30s", Some(30_000)),
            ("5m", Some(300_000)),
            ("1h30m", Some(5_400_000)),
            ("1h 30m", Some(5_400_000)),
            ("7d", Some(604_800_000)),
            ("0.5s", Some(500)),
            ("0", Some(0)),
            ("30", None),
            ("s", None),
            ("", None),
            ("-1s", None),
            ("1x", None),
            ("1s2", None),
            ("101000000000d", None),
        ];
        for (written, meant) in cases {
            assert_eq!(Span::read(&text(written)).ok().map(|span| span.0), meant, "{written}");
        }
        assert_eq!(Span::read(&text("30")).expect_err("no unit").why, "has no unit");
        assert_eq!(Span::from_millis(5_400_250).to_string(), "1h30m250ms");
    }

    #[test]
    fn lines_are_shares_or_amounts() {
        assert_eq!(BytesLine::read(&text("80%")), Ok(BytesLine::Percent(Percent(80.0))));
        assert_eq!(BytesLine::read(&text("350MB")), Ok(BytesLine::Size(Size(350_000_000))));
        assert_eq!(CoresLine::read(&Scalar::Float(1.5)), Ok(CoresLine::Cores(Cores(1.5))));
        assert_eq!(CoresLine::read(&Scalar::Integer(80)).expect_err("80 processors").why, "has no percent sign");
        for bad in ["0%", "100.1%", "%", "-5%", "nan%", "inf%", "eighty%"] {
            assert!(BytesLine::read(&text(bad)).is_err() && CoresLine::read(&text(bad)).is_err(), "{bad}");
        }
        // A forgotten percent sign is not eighty bytes.
        assert_eq!(BytesLine::read(&Scalar::Integer(80)).expect_err("80 bytes").why, "has no unit");
    }

    #[test]
    fn cores_counts_and_signals() {
        for written in ["1.5", "150%"] {
            assert_eq!(Cores::read(&text(written)), Ok(Cores(1.5)), "{written}");
        }
        for bad in ["0", "-1", "nan", "inf", "4097", "1e2", ""] {
            assert!(Cores::read(&text(bad)).is_err(), "{bad}");
        }
        let counts = [("3", Some(Count::Number(3))), ("cpus", Some(Count::Cpus { plus: 0 })), ("cpus + 1", Some(Count::Cpus { plus: 1 }))];
        for (written, meant) in counts.into_iter().chain([("cpus-1", None), ("cpu", None), ("4097", None), ("+3", None), ("cpus+", None)]) {
            assert_eq!(Count::read(&text(written)).ok(), meant, "{written}");
        }
        for written in ["SIGUSR1", "USR1", "sigusr1", "10"] {
            assert_eq!(SignalName::read(&text(written)), Ok(SignalName(libc::SIGUSR1)), "{written}");
        }
        for bad in ["0", "65", "-1", "SIG", "", "SIGRTMIN+99", "SIGRTMAX-99"] {
            assert!(SignalName::read(&text(bad)).is_err(), "{bad}");
        }
        assert_eq!(SignalName::read(&text("SIGUSR3")).expect_err("no such signal").meant.as_deref(), Some("SIGUSR1"));
    }

    #[test]
    fn the_nearest_name_is_one_slip_away_or_not_offered() {
        let known = ["command", "replicas", "low", "d"];
        for (name, meant) in
            [("comand", Some("command")), ("Replicas", Some("replicas")), ("lwo", Some("low")), ("db", None), ("xyzzy", None)]
        {
            assert_eq!(nearest(name, known), meant, "{name}");
        }
    }

    /// Anything at all, and things that are nearly right.
    fn anything() -> impl Strategy<Value = Scalar> {
        let nearly = "[0-9.+%-]{0,24} ?(ms|s|m|h|d|w|k|MB|GiB|T|%|cpus|cpus\\+|auto|never|SIG|USR1|RTMIN\\+|job:)?[0-9A-Za-z:.]{0,6}";
        prop_oneof![
            any::<String>().prop_map(Scalar::Text),
            nearly.prop_map(Scalar::Text),
            any::<i64>().prop_map(Scalar::Integer),
            any::<f64>().prop_map(Scalar::Float),
            any::<bool>().prop_map(Scalar::Boolean),
        ]
    }

    /// Reading never panics, and what was read reads the same once written.
    fn returns<U: Unit + PartialEq + fmt::Debug>(value: &Scalar) -> Result<(), TestCaseError> {
        if let Ok(unit) = U::read(value) {
            prop_assert_eq!(U::read(&unit.write()), Ok(unit));
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn whatever_is_read_can_be_written_and_read_again(value in anything()) {
            returns::<Size>(&value)?;
            returns::<Span>(&value)?;
            returns::<Every>(&value)?;
            returns::<Percent>(&value)?;
            returns::<Cores>(&value)?;
            returns::<MemoryLimit>(&value)?;
            returns::<CpuLimit>(&value)?;
            returns::<BytesLine>(&value)?;
            returns::<CoresLine>(&value)?;
            returns::<SignalName>(&value)?;
            returns::<Count>(&value)?;
            returns::<RungName>(&value)?;
            returns::<Account>(&value)?;
            returns::<Address>(&value)?;
            returns::<Variable>(&value)?;
        }

        #[test]
        fn every_size_and_duration_has_a_text(number in 0..=u64::MAX / 2) {
            prop_assert_eq!(Size::read(&Size(number).write()), Ok(Size(number)));
            let span = Span(number % (LONGEST_SPAN + 1));
            prop_assert_eq!(Span::read(&span.write()), Ok(span));
        }
    }
}
