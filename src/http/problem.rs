//! Errors as clients see them: `{error, message}` with the right status. `error` is a stable word, `message` is for people.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::access::Denied;

#[derive(Debug)]
pub struct Problem {
    pub status: StatusCode,
    pub error: &'static str,
    pub message: String,
}

impl Problem {
    pub fn new(status: StatusCode, error: &'static str, message: impl Into<String>) -> Problem {
        Problem { status, error, message: message.into() }
    }

    pub fn stalled() -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "loop_stalled", "the control loop has missed its deadline; nothing current is known")
    }

    /// What is wrong with what stands behind the `?`, in words for people instead of the parser's.
    pub fn query(error: &QueryRejection) -> Problem {
        let text = error.body_text();
        let mut message = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text).to_owned();
        for (told, meant) in [
            ("invalid digit found in string", "is no whole number"),
            ("cannot parse integer from empty string", "is empty, and has to be a whole number"),
            ("number too large to fit in target type", "is too large"),
            ("number too small to fit in target type", "is too small"),
        ] {
            message = message.replace(told, meant);
        }
        Problem::new(StatusCode::BAD_REQUEST, "bad_query", message)
    }

    pub fn ending() -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "the daemon is shutting down")
    }

    pub fn denied(why: Denied) -> Problem {
        let (status, error, message) = match why {
            Denied::KeyMissing => (StatusCode::UNAUTHORIZED, "key_missing", "send the key in the header X-API-Key"),
            Denied::KeyWrong => (StatusCode::UNAUTHORIZED, "key_wrong", "the key in X-API-Key is not the one that is set"),
            Denied::Remote => (
                StatusCode::FORBIDDEN,
                "key_not_set",
                "no key is set (http.api_key_file), so this is served on loopback and the control socket only",
            ),
            Denied::Forwarded => {
                (StatusCode::FORBIDDEN, "key_not_set", "no key is set (http.api_key_file), so requests passed on by a proxy are not served")
            }
            Denied::ForeignHost => {
                (StatusCode::FORBIDDEN, "foreign_host", "without a key, the host asked for must be localhost, 127.0.0.1 or [::1]")
            }
            Denied::CrossSite => (StatusCode::FORBIDDEN, "cross_site", "a page of another origin may not ask for this"),
        };
        Problem::new(status, error, message)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(json!({ "error": self.error, "message": self.message }))).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("X-API-Key realm=\"plimsoll\""));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }
}
