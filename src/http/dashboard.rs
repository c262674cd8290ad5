//! The dashboard: one page with nothing from elsewhere, and the door in front of it when a key is set.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};

/// Reads `/admin` every two seconds and draws.
const PAGE: &str = include_str!("dashboard.html");

/// A browser cannot send a header by itself: this asks for the key, fetches the page with it and shows that in its place.
const DOOR: &str = include_str!("door.html");

/// Nothing but what stands in the page itself, and requests to where it came from.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub fn page() -> Response {
    html(StatusCode::OK, PAGE)
}

/// Given with 401, so that nothing but a browser takes it for the page.
pub fn door() -> Response {
    html(StatusCode::UNAUTHORIZED, DOOR)
}

fn html(status: StatusCode, page: &'static str) -> Response {
    let mut response = (status, Html(page)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    response
}
