//! Who may ask what: one pure function over the route, the way the request came in, and what it carries.
//!
//! - Open routes (`/metrics`, `/healthz`, `/readyz`) are for everybody.
//! - On the control socket the permissions of the file are the rule; whoever could connect may ask.
//! - With a key set, every other request over TCP must carry it in `X-API-Key`, loopback included. A header of its own also
//!   keeps other web sites out: a browser sends it nowhere without asking us first.
//! - Without a key, only loopback may ask. A browser on this machine can be made to ask by any page it shows, so the name it
//!   asked for must be a loopback name (DNS rebinding), a changing request must not come from another site, and a request
//!   that a proxy passed on is not from here at all.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};

use axum::http::{HeaderMap, Method, Uri, header};
use subtle::{Choice, ConstantTimeEq};

use crate::config::settings;

/// What the settings say about access.
pub struct Access {
    key: Option<Key>,
    pub dashboard: bool,
}

impl Access {
    pub fn new(http: &settings::Http) -> Access {
        Access { key: http.api_key.as_ref().map(|key| Key::new(key.reveal())), dashboard: http.dashboard }
    }
}

/// The access settings in force, replaced whole by a reload.
pub struct CurrentAccess(RwLock<Arc<Access>>);

impl CurrentAccess {
    pub fn new(http: &settings::Http) -> CurrentAccess {
        CurrentAccess(RwLock::new(Arc::new(Access::new(http))))
    }

    pub fn replace(&self, http: &settings::Http) {
        // Poison cannot leave a pointer half written.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Access::new(http));
    }

    pub fn current(&self) -> Arc<Access> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A key padded to whole blocks, so that the time of a comparison tells neither the key nor, up to a block, its length.
struct Key {
    padded: Vec<u8>,
    length: u64,
}

impl Key {
    const BLOCK: usize = 512;

    fn new(key: &str) -> Key {
        let size = key.len().div_ceil(Self::BLOCK).max(1) * Self::BLOCK;
        Key { padded: pad(key.as_bytes(), size), length: key.len() as u64 }
    }

    /// True when `presented` is the key. An empty key opens nothing.
    fn opens(&self, presented: &[u8]) -> bool {
        let same_bytes = self.padded.as_slice().ct_eq(&pad(presented, self.padded.len()));
        let same_length = self.length.ct_eq(&(presented.len() as u64));
        let some = Choice::from(u8::from(!presented.is_empty()));
        bool::from(same_bytes & same_length & some)
    }
}

fn pad(bytes: &[u8], size: usize) -> Vec<u8> {
    let mut padded: Vec<u8> = bytes.iter().copied().take(size).collect();
    padded.resize(size, 0);
    padded
}

/// Which rule a route is under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Open,
    /// Everything else, unknown paths included: what is not listed as open is closed.
    Guarded,
}

impl Class {
    pub fn of(path: &str) -> Class {
        match path {
            "/metrics" | "/healthz" | "/readyz" => Class::Open,
            _ => Class::Guarded,
        }
    }
}

/// The way a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Tcp(SocketAddr),
    /// The control socket.
    Unix,
}

/// What a request carries that matters here.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    pub key: Option<&'a [u8]>,
    /// The host that was asked for, port included; `None` when none was named or two that differ.
    pub host: Option<&'a str>,
    pub origin: Option<&'a str>,
    /// `Sec-Fetch-Site`
    pub site: Option<&'a str>,
    /// A proxy says it passed this on for somebody else.
    pub forwarded: bool,
    /// The method may change something.
    pub changes: bool,
}

impl<'a> Claim<'a> {
    pub fn of(method: &Method, uri: &'a Uri, headers: &'a HeaderMap) -> Claim<'a> {
        let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let mut named = headers.get_all(header::HOST).iter().map(|value| value.to_str().ok());
        let header = named.next().flatten();
        let target = uri.authority().map(|authority| authority.as_str());
        let host = match (target, header, named.next()) {
            (_, _, Some(_)) => None,
            (Some(target), Some(header), None) if target != header => None,
            (target, header, None) => target.or(header),
        };
        Claim {
            key: headers.get("x-api-key").map(|value| value.as_bytes()),
            host,
            origin: text(header::ORIGIN),
            site: headers.get("sec-fetch-site").map(|value| value.to_str().unwrap_or("?")),
            forwarded: ["forwarded", "x-forwarded-for", "x-real-ip"].iter().any(|name| headers.contains_key(*name)),
            changes: !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS),
        }
    }
}

/// Why a request is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    KeyMissing,
    KeyWrong,
    /// No key is set and the peer is not on this machine.
    Remote,
    /// As `Remote`: a proxy on this machine passed it on.
    Forwarded,
    /// The host asked for is not a loopback name.
    ForeignHost,
    /// Another web site made a browser ask.
    CrossSite,
}

/// May this request be answered?
pub fn judge(access: &Access, class: Class, peer: Peer, claim: &Claim<'_>) -> Result<(), Denied> {
    let address = match (class, peer) {
        (Class::Open, _) | (_, Peer::Unix) => return Ok(()),
        (Class::Guarded, Peer::Tcp(address)) => address,
    };
    if let Some(key) = &access.key {
        return match claim.key {
            None | Some([]) => Err(Denied::KeyMissing),
            Some(presented) if key.opens(presented) => Ok(()),
            Some(_) => Err(Denied::KeyWrong),
        };
    }
    if !address.ip().to_canonical().is_loopback() {
        return Err(Denied::Remote);
    }
    if claim.forwarded {
        return Err(Denied::Forwarded);
    }
    if !claim.host.is_some_and(names_loopback) {
        return Err(Denied::ForeignHost);
    }
    if claim.changes && crosses_sites(claim) {
        return Err(Denied::CrossSite);
    }
    Ok(())
}

/// True for `localhost`, `*.localhost` and loopback addresses, with or without a port.
fn names_loopback(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().to_canonical().is_loopback();
    }
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return address.to_canonical().is_loopback();
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

fn crosses_sites(claim: &Claim<'_>) -> bool {
    // Another port of this machine is the same site but another origin, and may be anybody's.
    let foreign_site = claim.site.is_some_and(|site| !matches!(site, "same-origin" | "none"));
    let foreign_origin = claim.origin.is_some_and(|origin| origin.split_once("://").map(|(_, authority)| authority) != claim.host);
    foreign_site || foreign_origin
}

#[cfg(test)]
mod tests {
    use super::*;
    use settings::{Http, Secret};

    fn access(key: Option<&str>) -> Access {
        Access::new(&Http { listen: Vec::new(), api_key: key.map(|key| Secret::new(key.to_owned())), dashboard: true })
    }

    const PLAIN: Claim<'static> =
        Claim { key: None, host: Some("localhost:18760"), origin: None, site: None, forwarded: false, changes: false };

    fn peer(address: &str) -> Peer {
        Peer::Tcp(address.parse().unwrap())
    }

    /// The rule once more, as an order of questions over plain words, for every combination there is.
    #[test]
    fn every_combination_follows_the_rule() {
        let peers = [
            ("socket", Peer::Unix),
            ("loopback", peer("127.0.0.1:5")),
            ("loopback", peer("[::1]:5")),
            ("loopback", peer("[::ffff:127.0.0.2]:5")),
            ("remote", peer("198.51.100.7:5")),
            ("remote", peer("10.0.0.1:5")),
            ("remote", peer("[2001:db8::1]:5")),
        ];
        let presented: [(&str, Option<&[u8]>); 6] = [
            ("none", None),
            ("none", Some(b"")),
            ("right", Some(b"secret")),
            ("wrong", Some(b"secre")),
            ("wrong", Some(b"secret\0")),
            ("wrong", Some(b"Secret")),
        ];
        let hosts = [("own", Some("localhost")), ("foreign", Some("evil.example")), ("foreign", None)];
        let origins =
            [("own", None), ("own", Some("http://localhost")), ("foreign", Some("http://evil.example")), ("foreign", Some("null"))];
        let sites = [
            ("own", None),
            ("own", Some("none")),
            ("own", Some("same-origin")),
            ("foreign", Some("same-site")),
            ("foreign", Some("cross-site")),
        ];
        let classes = [Class::Open, Class::Guarded];
        let keys = [None, Some("secret")];
        let total = classes.len() * keys.len() * peers.len() * presented.len() * hosts.len() * origins.len() * sites.len() * 2 * 2;
        for combination in 0..total {
            // Each list takes its place in the number like a digit.
            let mut rest = combination;
            let mut pick = |choices: usize| {
                let at = rest % choices;
                rest /= choices;
                at
            };
            let class = classes[pick(classes.len())];
            let set = keys[pick(keys.len())];
            let (place, peer) = peers[pick(peers.len())];
            let (fit, key) = presented[pick(presented.len())];
            let (named, host) = hosts[pick(hosts.len())];
            let (from, origin) = origins[pick(origins.len())];
            let (via, site) = sites[pick(sites.len())];
            let (forwarded, changes) = (pick(2) == 1, pick(2) == 1);
            let claim = Claim { key, host, origin, site, forwarded, changes };
            let expected = match (class, place, set) {
                (Class::Open, _, _) | (_, "socket", _) => Ok(()),
                (_, _, Some(_)) => match fit {
                    "right" => Ok(()),
                    "none" => Err(Denied::KeyMissing),
                    _ => Err(Denied::KeyWrong),
                },
                (_, "remote", None) => Err(Denied::Remote),
                _ if forwarded => Err(Denied::Forwarded),
                _ if named == "foreign" => Err(Denied::ForeignHost),
                _ if changes && (via == "foreign" || from == "foreign") => Err(Denied::CrossSite),
                _ => Ok(()),
            };
            assert_eq!(judge(&access(set), class, peer, &claim), expected, "{class:?}, key set {set:?}, {peer:?}, {claim:?}");
        }
    }

    #[test]
    fn only_three_paths_are_open() {
        for path in ["/metrics", "/healthz", "/readyz"] {
            assert_eq!(Class::of(path), Class::Open, "{path}");
        }
        for path in ["/", "", "*", "/metrics/", "//metrics", "/Metrics", "/metrics/../admin", "/admin", "/admin/throttle", "/%6detrics"] {
            assert_eq!(Class::of(path), Class::Guarded, "{path}");
        }
    }

    #[test]
    fn loopback_has_these_names() {
        for host in [
            "localhost",
            "LOCALHOST:80",
            "localhost.:80",
            "app.localhost:18760",
            "127.0.0.1",
            "127.8.8.8:1",
            "[::1]",
            "[::1]:18760",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(names_loopback(host), "{host}");
        }
        for host in [
            "",
            "example.org",
            "localhost.example.org",
            "localhost:80:80",
            "notlocalhost",
            "127.0.0.1.example.org",
            "10.0.0.1",
            "[::2]:1",
            "0.0.0.0",
            "localhost:",
            "[localhost",
        ] {
            assert!(!names_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_key_opens_with_nothing_but_itself() {
        let long = "k".repeat(1500);
        for key in ["k", "correct horse", long.as_str()] {
            let access = access(Some(key));
            let opens = |presented: &str| {
                judge(&access, Class::Guarded, peer("198.51.100.7:5"), &Claim { key: Some(presented.as_bytes()), ..PLAIN }).is_ok()
            };
            assert!(opens(key));
            assert!(!opens(&format!("{key}k")) && !opens(&format!("{key}\0")) && !opens("") && !opens("\0"));
            assert!(!opens(&key.chars().skip(1).collect::<String>()));
        }
        // The settings refuse an empty key; should one come through, it locks and does not open.
        let empty = access(Some(""));
        assert!(judge(&empty, Class::Guarded, peer("127.0.0.1:5"), &Claim { key: Some(b""), ..PLAIN }).is_err());
    }
}
