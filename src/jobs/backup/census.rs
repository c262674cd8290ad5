//! Counts the rows of a database while its pages go by, with no file to ask: the proof that what is in a copy is whole, at the cost of
//! a few bytes a page.
//!
//! A page says by its first bytes whether it belongs to a tree and how many cells it has, and the inner pages of a tree say which pages
//! are below them. Pages that hold the rest of long rows, or nothing, may look like anything: so nothing is counted but
//! what can be reached from where a tree begins.

use std::collections::HashMap;

/// The file's own header, in front of the first page's.
const FILE_HEADER: usize = 100;

/// The first byte of a page of a tree.
const INNER_INDEX: u8 = 2;
const INNER_TABLE: u8 = 5;
const LEAF_INDEX: u8 = 10;
const LEAF_TABLE: u8 = 13;

#[derive(Debug)]
pub struct Census {
    page_size: usize,
    /// The page that is coming in.
    partial: Vec<u8>,
    /// By number, beginning at 1: its first byte, and its cells.
    pages: Vec<(u8, u16)>,
    /// Of inner pages: what is below.
    below: HashMap<u32, Vec<u32>>,
}

impl Census {
    /// `page_size` in bytes, at least 512.
    pub fn new(page_size: u32) -> Census {
        Census { page_size: (page_size as usize).max(512), partial: Vec::new(), pages: Vec::new(), below: HashMap::new() }
    }

    /// The next bytes of the file, in pieces of any length.
    pub fn read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.partial.is_empty() && bytes.len() >= self.page_size {
                let (page, rest) = bytes.split_at(self.page_size);
                self.page(page);
                bytes = rest;
                continue;
            }
            let wanted = (self.page_size - self.partial.len()).min(bytes.len());
            let (piece, rest) = bytes.split_at(wanted);
            self.partial.extend_from_slice(piece);
            bytes = rest;
            if self.partial.len() == self.page_size {
                let page = std::mem::take(&mut self.partial);
                self.page(&page);
                self.partial = page;
                self.partial.clear();
            }
        }
    }

    pub fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    fn page(&mut self, page: &[u8]) {
        let begins = if self.pages.is_empty() { FILE_HEADER } else { 0 };
        let header = page.get(begins..).unwrap_or_default();
        let (kind, cells) = match (header.first().copied(), number_of_two(header, 3)) {
            (Some(kind @ (INNER_INDEX | INNER_TABLE | LEAF_INDEX | LEAF_TABLE)), Some(cells)) => (kind, cells),
            _ => (0, 0),
        };
        self.pages.push((kind, cells));
        if matches!(kind, INNER_INDEX | INNER_TABLE)
            && let Some(children) = children(page, header, cells)
            && let Ok(number) = u32::try_from(self.pages.len())
        {
            self.below.insert(number, children);
        }
    }

    /// The rows of the table whose tree begins at `root`.
    ///
    /// # Errors
    /// Where the tree is not whole, in words for people.
    pub fn rows(&self, root: u32) -> Result<u64, String> {
        let mut seen = vec![false; self.pages.len()];
        let mut waiting = vec![root];
        let mut rows = 0;
        while let Some(number) = waiting.pop() {
            let place = (number as usize).checked_sub(1).ok_or("a tree leads to page 0")?;
            let (Some((kind, cells)), Some(was_seen)) = (self.pages.get(place), seen.get_mut(place)) else {
                return Err(format!("a tree leads to page {number} of {}", self.pages.len()));
            };
            if std::mem::replace(was_seen, true) {
                return Err(format!("page {number} is in a tree twice"));
            }
            match *kind {
                LEAF_TABLE => rows += u64::from(*cells),
                // Inner pages of a table hold no rows, those of an index (a table WITHOUT ROWID is one) do.
                INNER_TABLE => waiting.extend(self.children(number)?),
                INNER_INDEX => {
                    rows += u64::from(*cells);
                    waiting.extend(self.children(number)?);
                }
                LEAF_INDEX => rows += u64::from(*cells),
                _ => return Err(format!("page {number} should be part of a tree and is not")),
            }
        }
        Ok(rows)
    }

    fn children(&self, number: u32) -> Result<&[u32], String> {
        self.below.get(&number).map(Vec::as_slice).ok_or_else(|| format!("page {number} is damaged"))
    }
}

/// Every page below an inner one; `None` when what it says cannot be.
fn children(page: &[u8], header: &[u8], cells: u16) -> Option<Vec<u32>> {
    let last = number_of_four(header, 8)?;
    // A cell and its place in the list take six bytes at the least: what claims more of them is no page of a tree.
    if usize::from(cells) * 6 > page.len() {
        return None;
    }
    let mut children = Vec::with_capacity(usize::from(cells) + 1);
    for cell in 0..usize::from(cells) {
        let place = number_of_two(header, 12 + 2 * cell)?;
        children.push(number_of_four(page, usize::from(place))?);
    }
    children.push(last);
    Some(children)
}

fn number_of_two(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn number_of_four(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rusqlite::Connection;

    fn count(page_size: u32, pieces: usize, fill: &str) -> Vec<(String, u64, Result<u64, String>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch(&format!("PRAGMA page_size = {page_size}; {fill}")).unwrap();
        let mut tables = connection.prepare("SELECT name, rootpage FROM sqlite_schema WHERE type = 'table'").unwrap();
        let tables: Vec<(String, u32)> =
            tables.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().collect::<Result<_, _>>().unwrap();
        let mut census = Census::new(page_size);
        std::fs::read(&path).unwrap().chunks(pieces).for_each(|piece| census.read(piece));
        let rows =
            |name: &str| connection.query_row(&format!("SELECT count(*) FROM {name}"), [], |row| row.get::<_, i64>(0)).unwrap() as u64;
        tables.into_iter().map(|(name, root)| (name.clone(), rows(&name), census.rows(root))).collect()
    }

    const FILL: &str = "
        CREATE TABLE narrow (id INTEGER PRIMARY KEY, n);
        CREATE TABLE wide (id TEXT PRIMARY KEY, body BLOB);
        CREATE TABLE keyed (a, b, PRIMARY KEY (a, b)) WITHOUT ROWID;
        CREATE TABLE empty (a);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) INSERT INTO narrow SELECT i, i FROM n;
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) INSERT INTO wide SELECT hex(i), zeroblob(i * 97) FROM n;
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000) INSERT INTO keyed SELECT i % 7, i FROM n;
        DELETE FROM narrow WHERE id % 3 = 0; DELETE FROM wide WHERE rowid > 200;";

    #[test]
    fn rows_are_counted_as_sqlite_counts_them_whatever_the_page() {
        for page_size in [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536] {
            let counted = count(page_size, 1000, FILL);
            assert_eq!(counted.len(), 4);
            for (name, expected, found) in counted {
                assert_eq!(found, Ok(expected), "{name} at {page_size}");
            }
        }
    }

    #[test]
    fn pages_of_databases_that_shrink_are_no_trees() {
        for (name, expected, found) in count(4096, 1 << 20, &format!("PRAGMA auto_vacuum = INCREMENTAL; VACUUM; {FILL}")) {
            assert_eq!(found, Ok(expected), "{name}");
        }
    }

    #[test]
    fn a_tree_that_is_not_whole_is_told() {
        let mut census = Census::new(512);
        assert_eq!(census.rows(1), Err("a tree leads to page 1 of 0".into()));
        assert_eq!(census.rows(0), Err("a tree leads to page 0".into()));
        let mut first = vec![0; 512];
        // An inner page with no cells whose last child is itself.
        first[FILE_HEADER] = INNER_TABLE;
        first[FILE_HEADER + 11] = 1;
        census.read(&first);
        census.read(&[0; 512]);
        assert_eq!(census.rows(1), Err("page 1 is in a tree twice".into()));
        assert_eq!(census.rows(2), Err("page 2 should be part of a tree and is not".into()));
        // So many cells cannot be on a page.
        let mut wild = vec![0xff; 512];
        wild[0] = INNER_INDEX;
        census.read(&wild);
        assert_eq!(census.rows(3), Err("page 3 is damaged".into()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..4096), kinds in proptest::collection::vec(0u8..14, 8), pieces in 1usize..700) {
            let mut bytes = bytes;
            for (page, kind) in kinds.iter().enumerate() {
                if let Some(first) = bytes.get_mut(if page == 0 { FILE_HEADER } else { page * 512 }) {
                    *first = *kind;
                }
            }
            let mut census = Census::new(512);
            bytes.chunks(pieces).for_each(|piece| census.read(piece));
            prop_assert_eq!(census.pages(), bytes.len() as u64 / 512);
            for root in 0..12 {
                let _ = census.rows(root);
            }
        }
    }
}
