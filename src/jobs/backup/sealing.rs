//! Encrypts copies in the format of age (age-encryption.org/v1, X25519 recipients), so that `age -d` opens them without this program.
//!
//! The file of keys holds recipients (`age1…`), who can open what is sealed, or identities (`AGE-SECRET-KEY-1…`), which open it; an identity
//! is its own recipient. With recipients alone this machine can seal copies and never open one.
//!
//! The format: a fresh key for each file, wrapped once for each recipient in a header that is authenticated by it, then the content in
//! chunks of 64 KiB, each authenticated with its place, and the last one marked. So nothing can be changed, moved, or cut off unseen.

use std::io::{self, Read, Write};
use std::path::Path;

use chacha20poly1305::aead::Aead;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
use hkdf::Hkdf;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use x25519_dalek::{X25519_BASEPOINT_BYTES, x25519};

use crate::host::random;

/// The word of the manifest.
pub const AGE: &str = "age";

const VERSION: &str = "age-encryption.org/v1";
const STANZA: &str = "-> X25519 ";
const WRAP_INFO: &[u8] = b"age-encryption.org/v1/X25519";
const FILE_KEY: usize = 16;
const TAG: usize = 16;
const CHUNK: usize = 64 * 1024;
/// No header of ours is longer; one of age's with many recipients is not either.
const LONGEST_HEADER: usize = 64 * 1024;
const LONGEST_KEY_FILE: u64 = 1 << 20;

/// What a file of keys holds.
#[derive(Clone)]
pub struct Keys {
    recipients: Vec<[u8; 32]>,
    identities: Vec<[u8; 32]>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} recipients, {} identities", self.recipients.len(), self.identities.len())
    }
}

impl Keys {
    /// # Errors
    /// In words for people; nothing of a key is ever in them.
    pub fn read(path: &Path) -> Result<Keys, String> {
        let told = |reason: String| format!("key_file {}: {reason}", path.display());
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(|error| told(error.to_string()))?;
        file.take(LONGEST_KEY_FILE).read_to_string(&mut text).map_err(|error| told(error.to_string()))?;
        Keys::parse(&text).map_err(told)
    }

    fn parse(text: &str) -> Result<Keys, String> {
        let mut keys = Keys { recipients: Vec::new(), identities: Vec::new() };
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = bech32(line)
                .ok_or_else(|| format!("line {} is neither a recipient (age1…) nor an identity (AGE-SECRET-KEY-1…)", number + 1))?;
            match key {
                ("age", recipient) => keys.recipients.push(recipient),
                (_, identity) => {
                    keys.recipients.push(x25519(identity, X25519_BASEPOINT_BYTES));
                    keys.identities.push(identity);
                }
            }
        }
        keys.recipients.sort_unstable();
        keys.recipients.dedup();
        if keys.recipients.is_empty() { Err("there is no key in it".to_owned()) } else { Ok(keys) }
    }

    /// True where what is sealed with them can be opened with them.
    pub fn can_open(&self) -> bool {
        !self.identities.is_empty()
    }
}

/// Seals what is written to it.
pub struct Sealer<W: Write> {
    out: W,
    stream: Stream,
    /// Of the content, at most one chunk: which one is the last is not known before the end.
    chunk: Vec<u8>,
}

impl<W: Write> Sealer<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// Those of writing; when a recipient is a key that cannot be, or there are no random bytes.
    pub fn new(mut out: W, keys: &Keys) -> io::Result<Sealer<W>> {
        let mut file_key = [0; FILE_KEY];
        random::fill(&mut file_key)?;
        let mut header = format!("{VERSION}\n");
        for recipient in &keys.recipients {
            let mut secret = [0; 32];
            random::fill(&mut secret)?;
            let share = x25519(secret, X25519_BASEPOINT_BYTES);
            let wrapped = wrap_key(&secret, recipient, &share, recipient)?
                .encrypt(&[0; 12].into(), file_key.as_slice())
                .map_err(|_| io::Error::other("the key of the file cannot be wrapped"))?;
            header.push_str(&format!("{STANZA}{}\n{}\n", base64(&share), base64(&wrapped)));
        }
        header.push_str("---");
        let mac = header_mac(&file_key, header.as_bytes())?;
        header.push_str(&format!(" {}\n", base64(&mac)));
        let mut nonce = [0; 16];
        random::fill(&mut nonce)?;
        out.write_all(header.as_bytes())?;
        out.write_all(&nonce)?;
        Ok(Sealer { out, stream: Stream::new(&file_key, &nonce)?, chunk: Vec::with_capacity(CHUNK) })
    }

    fn seal(&mut self, is_last: bool) -> io::Result<()> {
        let nonce = self.stream.next(is_last);
        let sealed = self.stream.cipher.encrypt(&nonce.into(), self.chunk.as_slice());
        self.chunk.clear();
        self.out.write_all(&sealed.map_err(|_| io::Error::other("a chunk cannot be sealed"))?)
    }

    /// Without this the file cannot be opened to its end.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(mut self) -> io::Result<W> {
        self.seal(true)?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.chunk.len() == CHUNK && !bytes.is_empty() {
            self.seal(false)?;
        }
        let taken = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        // A chunk that is not full can only be the last one.
        self.out.flush()
    }
}

/// Opens what was sealed.
pub struct Opener<R: Read> {
    from: R,
    stream: Stream,
    /// Sealed: one chunk and a byte of the next, by which it is known not to be the last.
    sealed: Vec<u8>,
    open: Vec<u8>,
    /// Of `open`, how much was given out.
    given: usize,
    is_first: bool,
    is_over: bool,
}

impl<R: Read> Opener<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// Those of reading; when it is no header of this format, was changed, or is for none of these keys.
    pub fn new(mut from: R, keys: &Keys) -> io::Result<Opener<R>> {
        let header = read_header(&mut from)?;
        let file_key = open_header(&header, keys).map_err(io::Error::other)?;
        let mut nonce = [0; 16];
        from.read_exact(&mut nonce)?;
        let stream = Stream::new(&file_key, &nonce)?;
        Ok(Opener { from, stream, sealed: Vec::new(), open: Vec::new(), given: 0, is_first: true, is_over: false })
    }

    pub fn into_inner(self) -> R {
        self.from
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        let wanted = CHUNK + TAG + 1 - self.sealed.len();
        (&mut self.from).take(wanted as u64).read_to_end(&mut self.sealed)?;
        let is_last = self.sealed.len() <= CHUNK + TAG;
        let length = self.sealed.len().min(CHUNK + TAG);
        let chunk = self.sealed.get(..length).unwrap_or_default();
        let nonce = self.stream.next(is_last);
        let open = self.stream.cipher.decrypt(&nonce.into(), chunk);
        self.open = open.map_err(|_| io::Error::other("what is sealed was changed or cut off"))?;
        // An empty chunk is the whole of nothing, and never the end of something.
        if self.open.is_empty() && !self.is_first {
            return Err(io::Error::other("what is sealed was changed"));
        }
        self.sealed.drain(..length);
        (self.given, self.is_first, self.is_over) = (0, false, is_last);
        Ok(())
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.given == self.open.len() {
            if self.is_over {
                return Ok(0);
            }
            self.next_chunk()?;
        }
        let rest = self.open.get(self.given..).unwrap_or_default();
        let taken = rest.len().min(into.len());
        if let (Some(into), Some(rest)) = (into.get_mut(..taken), rest.get(..taken)) {
            into.copy_from_slice(rest);
        }
        self.given += taken;
        Ok(taken)
    }
}

/// The chunks of one file: each has its number in its nonce, and the last a mark.
struct Stream {
    cipher: ChaCha20Poly1305,
    number: u64,
}

impl Stream {
    fn new(file_key: &[u8; FILE_KEY], nonce: &[u8; 16]) -> io::Result<Stream> {
        Ok(Stream { cipher: ChaCha20Poly1305::new(&derive(file_key, Some(nonce), b"payload")?.into()), number: 0 })
    }

    /// The nonce of the next chunk: its number in eleven bytes, the highest first, then the mark.
    fn next(&mut self, is_last: bool) -> [u8; 12] {
        let mut nonce = [0; 12];
        let ((_, number), mark) = (nonce.split_at_mut(3), u8::from(is_last));
        for (place, byte) in number.iter_mut().zip(self.number.to_be_bytes().into_iter().chain([mark])) {
            *place = byte;
        }
        self.number += 1;
        nonce
    }
}

fn derive(secret: &[u8], salt: Option<&[u8]>, info: &[u8]) -> io::Result<[u8; 32]> {
    let mut key = [0; 32];
    Hkdf::<Sha256>::new(salt, secret).expand(info, &mut key).map_err(|_| io::Error::other("no key can be derived"))?;
    Ok(key)
}

/// The cipher that wraps the key of a file: agreed on by a fresh secret and a recipient, or a share and an identity.
fn wrap_key(secret: &[u8; 32], point: &[u8; 32], share: &[u8; 32], recipient: &[u8; 32]) -> io::Result<ChaCha20Poly1305> {
    let shared = x25519(*secret, *point);
    if bool::from(shared.ct_eq(&[0; 32])) {
        return Err(io::Error::other("a recipient is no key that can be"));
    }
    let salt = [*share, *recipient].concat();
    Ok(ChaCha20Poly1305::new(&derive(&shared, Some(&salt), WRAP_INFO)?.into()))
}

fn header_mac(file_key: &[u8; FILE_KEY], header: &[u8]) -> io::Result<[u8; 32]> {
    let key = derive(file_key, None, b"header")?;
    // The first half of HKDF is HMAC with the salt as its key.
    Ok(Hkdf::<Sha256>::extract(Some(&key), header).0.into())
}

/// To the end of the line that begins with `---`. Read byte by byte, so that nothing of what follows is taken.
fn read_header(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut header = Vec::new();
    let mut line = 0;
    loop {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        header.extend_from_slice(&byte);
        if byte == *b"\n" {
            if header.get(line..).is_some_and(|line| line.starts_with(b"--- ")) {
                return Ok(header);
            }
            line = header.len();
        }
        if header.len() > LONGEST_HEADER || (line == 0 && header.len() > VERSION.len() + 1) {
            return Err(io::Error::other("is not sealed as age does it"));
        }
    }
}

fn open_header(header: &[u8], keys: &Keys) -> Result<[u8; FILE_KEY], String> {
    let text = std::str::from_utf8(header).map_err(|_| "its header is no text")?;
    let mut lines = text.lines();
    if lines.next() != Some(VERSION) {
        return Err("is not sealed as age does it".to_owned());
    }
    let mut stanza = None;
    let mut found = None;
    for line in lines {
        if let Some(mac) = line.strip_prefix("--- ") {
            let file_key: [u8; FILE_KEY] = found.ok_or("it is sealed for other keys")?;
            let (Some(mac), Some(signed)) = (unbase64(mac), header.len().checked_sub(line.len() + 1)) else {
                return Err("its header is damaged".to_owned());
            };
            let expected = header_mac(&file_key, header.get(..signed + 3).unwrap_or_default()).map_err(|error| error.to_string())?;
            return if bool::from(expected.ct_eq(&mac)) { Ok(file_key) } else { Err("its header was changed".to_owned()) };
        }
        if let Some(begins) = line.strip_prefix("-> ") {
            stanza = begins.strip_prefix("X25519 ").and_then(|share| <[u8; 32]>::try_from(unbase64(share)?).ok());
        } else if let (Some(share), Some(wrapped)) = (stanza.take(), unbase64(line)) {
            found = found.or_else(|| keys.identities.iter().find_map(|identity| unwrap(identity, &share, &wrapped)));
        }
    }
    Err("its header has no end".to_owned())
}

/// The key of a file, if it was wrapped for this identity.
fn unwrap(identity: &[u8; 32], share: &[u8; 32], wrapped: &[u8]) -> Option<[u8; FILE_KEY]> {
    let recipient = x25519(*identity, X25519_BASEPOINT_BYTES);
    let cipher = wrap_key(identity, share, share, &recipient).ok()?;
    cipher.decrypt(&[0; 12].into(), wrapped).ok()?.try_into().ok()
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Without padding.
fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().chain([0, 0].iter()).take(3).fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        for sextet in 0..=three.len() {
            let place = (bits >> (18 - 6 * sextet)) & 63;
            text.extend(BASE64.get(place as usize).map(|byte| char::from(*byte)));
        }
    }
    text
}

fn unbase64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0_u32, 0);
    for byte in text.bytes() {
        let place = BASE64.iter().position(|known| *known == byte)?;
        bits = bits << 6 | u32::try_from(place).ok()?;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held).ok()?);
            bits &= (1 << held) - 1;
        }
    }
    // There is one way to write it.
    (bits == 0 && held < 6).then_some(bytes)
}

const BECH32: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
const PREFIXES: [&str; 2] = ["age", "age-secret-key-"];

/// A key of 32 bytes as age writes it, and which kind it is.
fn bech32(text: &str) -> Option<(&'static str, [u8; 32])> {
    let lower = text.to_ascii_lowercase();
    if text != lower && text != text.to_ascii_uppercase() {
        return None;
    }
    let (prefix, data) = lower.rsplit_once('1')?;
    let prefix = *PREFIXES.iter().find(|known| **known == prefix)?;
    let places = data.bytes().map(|byte| BECH32.iter().position(|known| *known == byte));
    let values: Vec<u8> = places.map(|place| u8::try_from(place?).ok()).collect::<Option<_>>()?;
    let expanded = prefix.bytes().map(|byte| byte >> 5).chain([0]).chain(prefix.bytes().map(|byte| byte & 31));
    if polymod(expanded.chain(values.iter().copied())) != 1 {
        return None;
    }
    let (values, _) = values.split_at(values.len().checked_sub(6)?);
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0_u32, 0);
    for value in values {
        bits = bits << 5 | u32::from(*value);
        held += 5;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held).ok()?);
            bits &= (1 << held) - 1;
        }
    }
    if bits != 0 || held >= 5 {
        return None;
    }
    Some((prefix, bytes.try_into().ok()?))
}

fn polymod(values: impl Iterator<Item = u8>) -> u32 {
    values.fold(1, |sum, value| {
        let top = sum >> 25;
        let next = (sum & 0x01ff_ffff) << 5 ^ u32::from(value);
        let generator = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
        generator.iter().enumerate().fold(next, |next, (bit, word)| if top >> bit & 1 == 1 { next ^ word } else { next })
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The pair of age's own tests.
    pub const RECIPIENT: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";
    pub const IDENTITY: &str = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";

    fn seal(content: &[u8], keys: &Keys) -> Vec<u8> {
        let mut sealer = Sealer::new(Vec::new(), keys).unwrap();
        sealer.write_all(content).unwrap();
        sealer.finish().unwrap()
    }

    fn open(sealed: &[u8], keys: &Keys) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Opener::new(sealed, keys)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn what_is_sealed_opens_with_its_identity_alone() {
        let identity = Keys::parse(&format!("# made for tests\n{IDENTITY}\n")).unwrap();
        let recipient = Keys::parse(RECIPIENT).unwrap();
        assert_eq!(identity.recipients, recipient.recipients);
        assert!(identity.can_open() && !recipient.can_open());
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 200_000] {
            let content: Vec<u8> = (0..length).map(|place| place as u8).collect();
            let sealed = seal(&content, &recipient);
            assert!(open(&sealed, &identity).unwrap() == content, "{length}");
            assert_eq!(open(&sealed, &recipient).unwrap_err().to_string(), "it is sealed for other keys");
        }
    }

    #[test]
    fn nothing_can_be_changed_or_cut_off_unseen() {
        let keys = Keys::parse(IDENTITY).unwrap();
        let content = vec![7; CHUNK + 1000];
        let sealed = seal(&content, &keys);
        for place in (0..sealed.len()).step_by(331).chain(0..250) {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            assert!(open(&changed, &keys).is_err(), "a changed byte at {place} went unseen");
        }
        for length in (0..sealed.len()).step_by(997).chain([sealed.len() - 1, sealed.len() - 1000 - TAG]) {
            assert!(open(&sealed[..length], &keys).is_err(), "cut off at {length}");
        }
        assert!(open(&[sealed.as_slice(), b"x"].concat(), &keys).is_err());
    }

    #[test]
    fn a_file_of_keys_that_is_none_is_told_and_no_key_with_it() {
        assert_eq!(Keys::parse("# nothing\n\n").unwrap_err(), "there is no key in it");
        let wrong = IDENTITY.replace('G', "H");
        let error = Keys::parse(&format!("\n{wrong}")).unwrap_err();
        assert!(error.starts_with("line 2 is neither") && !error.contains(&wrong), "{error}");
        for text in ["age1", "1", "age1qqqqqqqq", "ssh-ed25519 AAAA", &RECIPIENT[..20], &RECIPIENT.replace("age1z", "age1Z")] {
            assert!(Keys::parse(text).is_err(), "{text}");
        }
        assert!(!format!("{:?}", Keys::parse(IDENTITY).unwrap()).contains('['));
    }

    proptest! {
        #[test]
        fn base64_is_written_in_one_way(bytes in proptest::collection::vec(any::<u8>(), 0..80), text in "[A-Za-z0-9+/]{0,12}") {
            prop_assert_eq!(unbase64(&base64(&bytes)), Some(bytes));
            if let Some(read) = unbase64(&text) {
                prop_assert_eq!(base64(&read), text);
            }
        }

        #[test]
        fn any_header_is_survived(text in "(-> X25519 [A-Za-z0-9+/]{40,44}\n[A-Za-z0-9+/]{40,44}\n){0,3}(--- )?[A-Za-z0-9+/]{0,44}\n", key in "[ -~]{0,80}") {
            let keys = Keys::parse(IDENTITY).unwrap();
            let sealed = [format!("{VERSION}\n{text}").as_bytes(), &[0; 100]].concat();
            prop_assert!(open(&sealed, &keys).is_err());
            prop_assert!(Keys::parse(&key).is_err() || key.trim().is_empty() || key.trim().starts_with('#'));
        }
    }
}
