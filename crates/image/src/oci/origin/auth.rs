//! The answer to a registry's challenge (Distribution specification, "Token Authentication" and
//! "OAuth2").

use serde::Deserialize;
use ureq::http::header::WWW_AUTHENTICATE;
use ureq::http::{HeaderMap, StatusCode};

use super::super::document::shown;
use super::challenge::{self, Challenge};
use super::credentials::Login;
use super::http::{Http, Words, basic, form};

/// Longest answer of a token server, in bytes.
const MAX_ANSWER: u64 = 1 << 20;

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// What a refused request asks for.
pub(super) fn asked(headers: &HeaderMap) -> Option<Challenge> {
    headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok()).find_map(challenge::parse)
}

/// The value of `Authorization` that answers; errors in words.
pub(super) fn answer(
    http: &Http,
    challenge: &Challenge,
    login: Option<&Login>,
    repository: &str,
) -> Result<String, String> {
    match (challenge, login) {
        (Challenge::Basic, Some(Login::Password { user, secret })) => Ok(basic(user, secret)),
        (Challenge::Basic, Some(Login::Token(_))) => {
            Err("it wants a password, and the credentials here are a token; log in again".to_owned())
        }
        (Challenge::Basic, None) => {
            Err("it wants a user's name and password; `docker login` (or `skopeo login`) keeps them"
                .to_owned())
        }
        (Challenge::Bearer { realm, service, scope }, login) => {
            let scope = scope.clone().unwrap_or_else(|| format!("repository:{repository}:pull"));
            token(http, realm, service.as_deref(), &scope, login)
        }
    }
}

fn token(
    http: &Http,
    realm: &str,
    service: Option<&str>,
    scope: &str,
    login: Option<&Login>,
) -> Result<String, String> {
    let mut pairs = vec![("scope", scope)];
    pairs.extend(service.map(|service| ("service", service)));
    let mut words = Words::default();
    let mut url = realm.to_owned();
    match login {
        Some(Login::Token(refresh)) => {
            pairs.extend([
                ("grant_type", "refresh_token"),
                ("client_id", "smolvm"),
                ("refresh_token", refresh),
            ]);
            words.form = Some(form(&pairs));
        }
        login => {
            if let Some(Login::Password { user, secret }) = login {
                words.authorization = Some(basic(user, secret));
            }
            let mark = if realm.contains('?') { '&' } else { '?' };
            url = format!("{realm}{mark}{}", form(&pairs));
        }
    }
    let mut response = http.send(&url, &words).map_err(|e| format!("its token server: {e}"))?;
    if response.status() != StatusCode::OK {
        let who = if login.is_some() { "the credentials kept for it" } else { "no credentials" };
        return Err(format!(
            "its token server answered {} to {who}; `docker login` (or `skopeo login`) renews them",
            response.status()
        ));
    }
    let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
    let body = body.map_err(|e| format!("its token server: {e}"))?;
    let token: Token =
        serde_json::from_slice(&body).map_err(|e| format!("its token server answered nonsense: {e}"))?;
    let token = token.token.or(token.access_token).filter(|token| !token.is_empty());
    let token = token.ok_or("its token server gave no token")?;
    match token.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(format!("Bearer {token}")),
        false => Err(format!("its token server gave a token that is none: `{}`", shown(&token))),
    }
}
