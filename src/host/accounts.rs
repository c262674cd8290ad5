//! Users and groups by name or number, from the two files every machine has. A directory service is not asked: it may not
//! be reachable when a worker has to be started.

use std::io;
use std::path::PathBuf;

/// A user to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
    /// All groups it is in, `gid` first.
    pub groups: Vec<u32>,
    pub home: PathBuf,
    pub name: String,
}

/// Users: name, password, number, number of the group, comment, home, shell (passwd(5)).
const USERS: &str = "/etc/passwd";
/// Groups: name, password, number, members (group(5)).
const GROUPS: &str = "/etc/group";

/// Looks a user, and optionally a group other than its own, up by name or number. A number nobody has is taken as it is: an
/// image without accounts has none to look up.
///
/// # Errors
/// `NotFound` for a name that is not there.
pub fn find(user: &str, group: Option<&str>) -> io::Result<Account> {
    resolve(user, group, &text_of(USERS), &text_of(GROUPS))
}

/// Where the users of this machine are at home, as far as that is a folder of their own.
pub fn homes() -> Vec<PathBuf> {
    homes_in(&text_of(USERS))
}

fn homes_in(users: &str) -> Vec<PathBuf> {
    let homes = users.lines().filter_map(user_of).map(|(.., home)| PathBuf::from(home));
    homes.filter(|home| home.is_absolute() && home.parent().is_some()).collect()
}

/// By bytes: a comment in another encoding hides nobody.
fn text_of(file: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned()
}

fn resolve(user: &str, group: Option<&str>, users: &str, groups: &str) -> io::Result<Account> {
    let no_such = |what: &str, name: &str| io::Error::new(io::ErrorKind::NotFound, format!("there is no {what} {name} on this machine"));
    let (name, uid, own_gid, home) = match users.lines().filter_map(user_of).find(|(name, uid, ..)| is_meant(user, name, *uid)) {
        Some((name, uid, gid, home)) => (name, uid, gid, home),
        None => {
            let uid = number(user).ok_or_else(|| no_such("user", user))?;
            (user, uid, uid, "/")
        }
    };
    let rows: Vec<(&str, u32, &str)> = groups.lines().filter_map(group_of).collect();
    let gid = match group {
        None => own_gid,
        Some(wanted) => {
            let row = rows.iter().find(|(name, gid, _)| is_meant(wanted, name, *gid));
            row.map(|(_, gid, _)| *gid).or_else(|| number(wanted)).ok_or_else(|| no_such("group", wanted))?
        }
    };
    let mut all = vec![gid];
    for (_, id, members) in &rows {
        if members.split(',').any(|member| member == name) && !all.contains(id) {
            all.push(*id);
        }
    }
    let home = if home.is_empty() { "/" } else { home };
    Ok(Account { uid, gid, groups: all, home: PathBuf::from(home), name: name.to_owned() })
}

/// By its name, or by the number it is written with.
fn is_meant(wanted: &str, name: &str, id: u32) -> bool {
    wanted == name || number(wanted) == Some(id)
}

/// The highest number is nobody's: to the kernel it means "leave it as it is", and the worker would stay root.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

/// Name, number, number of its group, home. What is not of this form is no user.
fn user_of(line: &str) -> Option<(&str, u32, u32, &str)> {
    let mut fields = line.split(':');
    let (name, _password) = (fields.next().filter(|name| !name.is_empty())?, fields.next()?);
    let (uid, gid) = (number(fields.next()?)?, number(fields.next()?)?);
    let (_comment, home) = (fields.next()?, fields.next()?);
    Some((name, uid, gid, home))
}

/// Name, number, members.
fn group_of(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let (name, _password) = (fields.next().filter(|name| !name.is_empty())?, fields.next()?);
    Some((name, number(fields.next()?)?, fields.next()?))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
                          broken line\n\
                          :x:5:5::/:/bin/sh\n\
                          half:x:7\n\
                          app:x:1000:100:An \u{fffd} app,,,:/home/app:/bin/sh\n\
                          bare:x:1001:1001:::\n\
                          twin:x:1000:7::/tmp:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nusers:x:100:\naudio:x:29:app,other\nvideo:x:44:other\ndup:x:29:app\nbad:x:many:app\n";

    #[test]
    fn a_name_or_a_number_finds_the_account_and_all_its_groups() {
        let app = Account { uid: 1000, gid: 100, groups: vec![100, 29], home: "/home/app".into(), name: "app".into() };
        assert_eq!(resolve("app", None, PASSWD, GROUP).unwrap(), app);
        assert_eq!(resolve("1000", None, PASSWD, GROUP).unwrap(), app);
        for group in ["video", "44"] {
            let other = resolve("app", Some(group), PASSWD, GROUP).unwrap();
            assert_eq!((other.gid, other.groups), (44, vec![44, 29]), "{group}");
        }
        assert_eq!(resolve("bare", None, PASSWD, GROUP).unwrap().home, Path::new("/"));
        let nobodys = Account { uid: 4242, gid: 4242, groups: vec![4242], home: "/".into(), name: "4242".into() };
        assert_eq!(resolve("4242", None, PASSWD, GROUP).unwrap(), nobodys, "an image without accounts");
    }

    #[test]
    fn homes_are_folders_of_their_own() {
        assert_eq!(homes_in(PASSWD), ["/root", "/home/app", "/tmp"].map(PathBuf::from));
        assert!(homes_in("nobody:x:65534:65534::/:/bin/sh\nodd:x:5:5::here:/bin/sh\n").is_empty());
    }

    #[test]
    fn what_is_not_there_or_means_nobody_is_refused() {
        // The last one is -1 to the kernel.
        for user in ["", "nobody-here", "half", "broken line", "-1", "4294967295", "99999999999"] {
            assert_eq!(resolve(user, None, PASSWD, GROUP).unwrap_err().kind(), io::ErrorKind::NotFound, "{user:?}");
        }
        for group in ["", "bad", "nothing", "4294967295"] {
            assert!(resolve("app", Some(group), PASSWD, GROUP).is_err(), "{group:?}");
        }
        let minus_one = "evil:x:4294967295:0::/:/bin/sh\n";
        assert!(resolve("evil", None, minus_one, "").is_err(), "setuid(-1) would leave the worker what we are");
    }

    proptest! {
        #[test]
        fn any_text_is_survived_and_hides_nobody(before in "(?s).{0,200}", after in "(?s).{0,200}", user in ".{0,12}", group in proptest::option::of(".{0,12}")) {
            if let Ok(found) = resolve(&user, group.as_deref(), &before, &after) {
                prop_assert!(found.uid != u32::MAX && found.gid != u32::MAX && !found.groups.contains(&u32::MAX));
                prop_assert_eq!(found.groups.first(), Some(&found.gid));
            }
            let text = format!("{before}\nplimsoll-app:x:1234:55:c:/home/it:/bin/sh\n{after}");
            prop_assert_eq!(resolve("plimsoll-app", None, &text, &before).unwrap().uid, 1234);
        }
    }
}
