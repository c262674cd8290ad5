//! The environment a worker is started with: the daemon's own, less what was meant for the daemon alone.

use std::collections::BTreeMap;
use std::ffi::OsString;

use crate::host::accounts::Account;

/// Variables that tell the daemon about itself: a worker that obeyed them would speak in its name, or learn its secrets.
const FOR_THE_DAEMON: [&str; 9] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "CREDENTIALS_DIRECTORY",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
];

/// `inherited` cleaned, then the account's home and name, then what the settings say.
pub fn of_worker(
    inherited: &[(OsString, OsString)],
    account: Option<&Account>,
    settings: &BTreeMap<String, String>,
) -> Vec<(OsString, OsString)> {
    let mut env: BTreeMap<OsString, OsString> = inherited
        .iter()
        .filter(|(name, _)| {
            let name = name.to_string_lossy();
            !name.starts_with("PLIMSOLL_") && !FOR_THE_DAEMON.contains(&name.as_ref())
        })
        .cloned()
        .collect();
    if let Some(account) = account {
        env.insert("HOME".into(), account.home.clone().into());
        env.insert("USER".into(), account.name.clone().into());
        env.insert("LOGNAME".into(), account.name.clone().into());
    }
    env.extend(settings.iter().map(|(name, value)| (name.into(), value.into())));
    env.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_for_the_daemon_stays_with_it() {
        let inherited: Vec<(OsString, OsString)> =
            [("PATH", "/bin"), ("NOTIFY_SOCKET", "@x"), ("PLIMSOLL_HTTP__API_KEY", "secret"), ("LOG_LEVEL", "debug"), ("PORT", "8000")]
                .map(|(name, value)| (name.into(), value.into()))
                .to_vec();
        let settings = BTreeMap::from([("LOG_LEVEL".to_owned(), "info".to_owned())]);
        let expected: Vec<(OsString, OsString)> =
            [("LOG_LEVEL", "info"), ("PATH", "/bin"), ("PORT", "8000")].map(|(name, value)| (name.into(), value.into())).to_vec();
        assert_eq!(of_worker(&inherited, None, &settings), expected);
    }
}
