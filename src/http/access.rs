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
