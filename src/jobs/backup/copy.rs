//! Packs a stream of pages into a copy: hashed, compressed and written by a thread of its own, so that reading a live database never
//! waits for the disk that takes the copy longer than a few buffers.

use std::io::{self, BufWriter, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

use super::sealing::{Keys, Opener, Sealer};
use super::watch::Halt;
use crate::config::jobs::Compress;
use crate::host::scheduling;

/// What is handed over at once, and how many of these are under way.
const BUFFER: usize = 256 * 1024;
const BUFFERS: usize = 8;
/// What is read at once of a copy, or of a file as large as a database.
const PIECE: usize = 1 << 20;

/// The figures of a finished copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    pub file_bytes: u64,
    pub file_sha256: String,
    pub database_bytes: u64,
    pub database_sha256: String,
}

/// Takes pages in order; dropped before [`Packer::finish`] it leaves a file that is no copy.
pub struct Packer<W> {
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    buffer: Vec<u8>,
    content: Sha256,
    bytes: u64,
    written: Arc<AtomicU64>,
    /// Until it has given up.
    thread: Option<JoinHandle<io::Result<Written<W>>>>,
}

impl<W: Write + Send + 'static> Packer<W> {
    /// `expected` bytes will come: known beforehand, so that a copy that was cut off never passes for a whole one. Sealed where there
    /// are keys.
    ///
    /// # Errors
    /// When no thread or no compressor can be made.
    pub fn start(out: W, compress: Compress, keys: Option<Keys>, expected: u64) -> io::Result<Packer<W>> {
        let (full, filled) = mpsc::sync_channel::<Vec<u8>>(BUFFERS);
        let (used, empty) = mpsc::channel();
        let written = Arc::new(AtomicU64::new(0));
        let counter = written.clone();
        let pack = move || {
            let out = Outer::new(Hashing::new(out, counter), keys.as_ref())?;
            let mut sink = Sink::new(out, compress, expected)?;
            for mut buffer in filled {
                sink.write_all(&buffer)?;
                buffer.clear();
                // Nobody wants it back once the last page has come.
                let _ = used.send(buffer);
            }
            sink.finish()
        };
        let thread = std::thread::Builder::new().name("pack".into());
        let thread = scheduling::deaf_to_signals(|| thread.spawn(pack))?;
        Ok(Packer { full, empty, buffer: Vec::with_capacity(BUFFER), content: Sha256::new(), bytes: 0, written, thread: Some(thread) })
    }

    /// The next bytes of the database. False where they are held until [`Packer::hand_over`] can pass them on: whatever takes the copy
    /// hangs or is slow, and whoever reads a live database has something to look after meanwhile.
    ///
    /// # Errors
    /// The first error of any write.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<bool> {
        self.content.update(bytes);
        self.bytes += bytes.len() as u64;
        self.buffer.extend_from_slice(bytes);
        self.hand_over()
    }

    /// Passes on what is held, without waiting; true once it is.
    ///
    /// # Errors
    /// The first error of any write.
    pub fn hand_over(&mut self) -> io::Result<bool> {
        if self.buffer.len() < BUFFER {
            return Ok(true);
        }
        match self.full.try_send(std::mem::take(&mut self.buffer)) {
            Ok(()) => {
                self.buffer = self.empty.try_recv().unwrap_or_else(|_| Vec::with_capacity(BUFFER + BUFFER / 4));
                Ok(true)
            }
            Err(TrySendError::Full(full)) => {
                self.buffer = full;
                Ok(false)
            }
            Err(TrySendError::Disconnected(_)) => Err(self.end().err().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Waits for what writes.
    fn end(&mut self) -> io::Result<Written<W>> {
        let thread = self.thread.take().ok_or(io::ErrorKind::BrokenPipe)?;
        thread.join().map_err(|_| io::Error::other("the thread that packs has panicked"))?
    }

    /// Of the copy, so far, in bytes.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Writes out what is left, and hands back what was written to.
    ///
    /// # Errors
    /// The first error of any write.
    pub fn finish(mut self) -> io::Result<(Packed, W)> {
        // If it has given up, the thread tells why.
        let _ = self.full.send(std::mem::take(&mut self.buffer));
        // It ends when nothing more can come.
        self.full = mpsc::sync_channel(0).0;
        let written = self.end()?;
        let packed = Packed {
            file_bytes: written.bytes,
            file_sha256: written.sha256,
            database_bytes: self.bytes,
            database_sha256: hexadecimal(&self.content.finalize()),
        };
        Ok((packed, written.out))
    }
}

struct Written<W> {
    out: W,
    bytes: u64,
    sha256: String,
}

enum Sink<W: Write> {
    Zstd(zstd::Encoder<'static, Outer<W>>),
    Plain(Outer<W>),
}

impl<W: Write> Sink<W> {
    fn new(out: Outer<W>, compress: Compress, expected: u64) -> io::Result<Sink<W>> {
        Ok(match compress {
            Compress::Zstd(level) => {
                let mut encoder = zstd::Encoder::new(out, level)?;
                // Without these a frame that was cut off, or whose bits have turned, unpacks to something.
                encoder.include_checksum(true)?;
                encoder.set_pledged_src_size(Some(expected))?;
                Sink::Zstd(encoder)
            }
            Compress::None => Sink::Plain(out),
        })
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::Zstd(encoder) => encoder.write_all(bytes),
            Sink::Plain(out) => out.write_all(bytes),
        }
    }

    fn finish(self) -> io::Result<Written<W>> {
        match self {
            Sink::Zstd(encoder) => encoder.finish()?.finish(),
            Sink::Plain(out) => out.finish(),
        }
    }
}

/// What is packed is sealed, or not.
enum Outer<W: Write> {
    Sealed(Box<Sealer<Hashing<W>>>),
    Open(Hashing<W>),
}

impl<W: Write> Outer<W> {
    fn new(out: Hashing<W>, keys: Option<&Keys>) -> io::Result<Outer<W>> {
        Ok(match keys {
            Some(keys) => Outer::Sealed(Box::new(Sealer::new(out, keys)?)),
            None => Outer::Open(out),
        })
    }

    fn finish(self) -> io::Result<Written<W>> {
        match self {
            Outer::Sealed(sealer) => sealer.finish()?.finish(),
            Outer::Open(out) => out.finish(),
        }
    }
}

impl<W: Write> Write for Outer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Outer::Sealed(sealer) => sealer.write(bytes),
            Outer::Open(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Outer::Sealed(sealer) => sealer.flush(),
            Outer::Open(out) => out.flush(),
        }
    }
}

/// Hashes what is written, as it will lie on the disk.
struct Hashing<W: Write> {
    out: BufWriter<W>,
    sha256: Sha256,
    bytes: Arc<AtomicU64>,
}

impl<W: Write> Hashing<W> {
    fn new(out: W, bytes: Arc<AtomicU64>) -> Hashing<W> {
        Hashing { out: BufWriter::with_capacity(BUFFER, out), sha256: Sha256::new(), bytes }
    }

    fn finish(self) -> io::Result<Written<W>> {
        let out = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(Written { out, bytes: self.bytes.load(Ordering::Relaxed), sha256: hexadecimal(&self.sha256.finalize()) })
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.sha256.update(bytes.get(..written).unwrap_or(bytes));
        self.bytes.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Reads a copy back: what comes out is the database, whatever the copy was packed with.
pub struct Unpacker<R: Read> {
    source: Source<R>,
}

enum Source<R: Read> {
    Zstd(Box<zstd::Decoder<'static, io::BufReader<Inner<R>>>>),
    Plain(Inner<R>),
}

enum Inner<R: Read> {
    Sealed(Box<Opener<HashingReader<R>>>),
    Open(HashingReader<R>),
}

impl<R: Read> Read for Inner<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Inner::Sealed(opener) => opener.read(into),
            Inner::Open(reader) => reader.read(into),
        }
    }
}

impl<R: Read> Unpacker<R> {
    /// `keys` for a copy that is sealed.
    ///
    /// # Errors
    /// When no decompressor can be made, `compression` is a word this version does not know, or the keys do not open it.
    pub fn new(copy: R, compression: &str, keys: Option<&Keys>) -> io::Result<Unpacker<R>> {
        let reader = HashingReader { inner: copy, sha256: Sha256::new(), bytes: 0 };
        let inner = match keys {
            Some(keys) => Inner::Sealed(Box::new(Opener::new(reader, keys)?)),
            None => Inner::Open(reader),
        };
        let source = match compression {
            "zstd" => Source::Zstd(Box::new(zstd::Decoder::with_buffer(io::BufReader::with_capacity(BUFFER, inner))?)),
            "none" => Source::Plain(inner),
            word => {
                return Err(io::Error::other(format!("packed with {word}, which this version does not know")));
            }
        };
        Ok(Unpacker { source })
    }

    /// Of the copy as it lies on the disk, up to where it was read: bytes, and their SHA-256.
    ///
    /// # Errors
    /// Those of reading what is left of it.
    pub fn finish(self) -> io::Result<(u64, String)> {
        let inner = match self.source {
            Source::Zstd(decoder) => decoder.finish().into_inner(),
            Source::Plain(inner) => inner,
        };
        let mut reader = match inner {
            Inner::Sealed(opener) => opener.into_inner(),
            Inner::Open(reader) => reader,
        };
        io::copy(&mut reader, &mut io::sink())?;
        Ok((reader.bytes, hexadecimal(&reader.sha256.finalize())))
    }
}

impl<R: Read> Read for Unpacker<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.source {
            Source::Zstd(decoder) => decoder.read(into),
            Source::Plain(reader) => reader.read(into),
        }
    }
}

struct HashingReader<R> {
    inner: R,
    sha256: Sha256,
    bytes: u64,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.sha256.update(into.get(..read).unwrap_or(into));
        self.bytes += read as u64;
        Ok(read)
    }
}

/// Reads a file to its end, and says with each piece how much has come so far.
pub fn read_pieces(mut from: impl std::io::Read, mut take: impl FnMut(&[u8], u64) -> Result<(), Halt>) -> Result<u64, Halt> {
    let mut buffer = vec![0; PIECE];
    let mut done = 0;
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(done),
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Halt::because(error)),
        };
        done += read as u64;
        take(buffer.get(..read).unwrap_or_default(), done)?;
    }
}

pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes, as a disk does.
    struct Small {
        left: usize,
        taken: Vec<u8>,
    }

    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.left == 0 {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            let taken = bytes.len().min(self.left);
            self.left -= taken;
            self.taken.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Text that packs to about a half.
    fn content(bytes: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            b'a' + (state >> 60) as u8
        };
        (0..bytes).map(|_| next()).collect()
    }

    fn pack(content: &[u8], compress: Compress, room: usize) -> io::Result<(Packed, Small)> {
        let mut packer = Packer::start(Small { left: room, taken: Vec::new() }, compress, None, content.len() as u64)?;
        for page in content.chunks(4096) {
            let mut is_taken = packer.push(page)?;
            while !is_taken {
                std::thread::yield_now();
                is_taken = packer.hand_over()?;
            }
        }
        packer.finish()
    }

    /// A disk that takes nothing until it is let.
    struct Hanging(Receiver<()>);

    impl Write for Hanging {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Whoever lets it ever after is gone.
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_hangs_holds_nobody_who_reads() {
        let content = content(BUFFER);
        let (let_it, hangs) = mpsc::channel();
        let mut packer = Packer::start(Hanging(hangs), Compress::None, None, 40 * BUFFER as u64).unwrap();
        let mut pushed = 1;
        while packer.push(&content).unwrap() {
            pushed += 1;
        }
        assert!((BUFFERS..BUFFERS + 4).contains(&pushed), "{pushed}");
        assert!(!packer.hand_over().unwrap());
        drop(let_it);
        while !packer.hand_over().unwrap() {
            std::thread::yield_now();
        }
        assert_eq!(packer.bytes, (pushed * BUFFER) as u64);
    }

    #[test]
    fn what_is_packed_comes_out_again_and_is_hashed_on_both_sides() {
        for (compress, word) in [(Compress::Zstd(3), "zstd"), (Compress::None, "none")] {
            for bytes in [0, 4096, 3_000_000] {
                let content = content(bytes);
                let (packed, small) = pack(&content, compress, usize::MAX).unwrap();
                assert_eq!((packed.database_bytes, packed.file_bytes), (bytes as u64, small.taken.len() as u64));
                let mut unpacker = Unpacker::new(small.taken.as_slice(), word, None).unwrap();
                let mut out = Vec::new();
                unpacker.read_to_end(&mut out).unwrap();
                assert!(out == content);
                assert_eq!(unpacker.finish().unwrap(), (packed.file_bytes, packed.file_sha256));
                assert_eq!(packed.database_sha256, hexadecimal(&Sha256::digest(&content)));
            }
        }
    }

    #[test]
    fn a_disk_that_is_full_at_any_write_is_told() {
        let content = content(2_000_000);
        for compress in [Compress::Zstd(1), Compress::None] {
            let whole = pack(&content, compress, usize::MAX).unwrap().0.file_bytes as usize;
            for room in (0..whole).step_by(whole / 50 + 1).chain([whole - 1]) {
                let error = pack(&content, compress, room).err().unwrap_or_else(|| panic!("{room} of {whole} bytes were enough"));
                assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{room}");
            }
        }
    }

    #[test]
    fn a_copy_that_was_cut_off_or_changed_does_not_unpack_to_the_end() {
        let content = content(500_000);
        let taken = pack(&content, Compress::Zstd(3), usize::MAX).unwrap().1.taken;
        let unpack = |copy: &[u8]| {
            let mut out = Vec::new();
            Unpacker::new(copy, "zstd", None)?.read_to_end(&mut out).map(|_| out)
        };
        assert!(unpack(&taken).unwrap() == content);
        for length in (0..taken.len()).step_by(taken.len() / 40 + 1) {
            assert!(unpack(&taken[..length]).is_err() || length == 0, "{length}");
        }
        for place in (0..taken.len()).step_by(taken.len() / 40 + 1) {
            let mut changed = taken.clone();
            changed[place] ^= 0x10;
            assert!(unpack(&changed).map_or(true, |out| out == content), "a changed byte at {place} went unseen");
        }
    }
}
