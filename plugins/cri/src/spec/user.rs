//! Owns who a container runs as: the user of the CRI or of the image, and its groups, looked up in the container's own
//! /etc/passwd and /etc/group.
//!
//! Those files are the image's, so nothing of them is trusted: they are opened below a root that resolution cannot leave
//! (links inside it are followed, forty at most), only if they are regular files, and read up to [`MAX_FILE`]. An entry
//! whose number is not one is no entry: it must not become user 0.
//!
//! | asked | user | group |
//! |---|---|---|
//! | nothing | 0 | 0 |
//! | `7` | 7 | that of 7 in passwd, else 0 |
//! | `7:8` | 7 | 8 |
//! | `name`, `name:8` | of passwd, else an error | of passwd, or 8 |
//! | `7:name` | 7 | of group, else an error |

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use corten_core::{Context, Error, Result};
use corten_protos::runtime::v1::{Int64Value, SupplementalGroupsPolicy};
use corten_sys::Root;
use corten_sys::root::magic_path;
use rustix::fs::FileType;

use super::oci::User;

/// Longest passwd and group file that is read.
pub const MAX_FILE: u64 = 10 << 20;
/// runc takes no greater id.
const MAX_ID: i64 = i32::MAX as i64;

const PASSWD: &str = "etc/passwd";
const GROUP: &str = "etc/group";

/// What the CRI and the image say of the user.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asked<'a> {
    pub username: &'a str,
    pub uid: Option<Int64Value>,
    pub gid: Option<Int64Value>,
    /// `USER` of the image.
    pub image: &'a str,
    pub policy: i32,
    pub groups: &'a [i64],
}

/// One user of a passwd file.
struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

/// One group of a group file.
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// User and group of `USER` in an image: a number or a name.
pub fn of_image(user: &str) -> (Option<i64>, String) {
    let user = user.split(':').next().unwrap_or_default();
    match user.parse::<i64>() {
        Ok(uid) => (Some(uid), String::new()),
        Err(_) => (None, user.to_owned()),
    }
}

/// Whether [`resolve`] has to look into the rootfs.
pub(super) fn needs_rootfs(asked: &Asked<'_>) -> bool {
    if asked.policy == SupplementalGroupsPolicy::Merge as i32 {
        return true;
    }
    let user = asked.user().unwrap_or_default();
    match user.split_once(':') {
        _ if user.is_empty() => false,
        Some((user, group)) => number(user).is_none() || number(group).is_none(),
        None => true,
    }
}

/// The user of a container. `rootfs` is where its root file system is mounted.
pub(super) fn resolve(asked: &Asked<'_>, rootfs: Option<&Path>) -> Result<User> {
    let root = match rootfs {
        Some(path) if needs_rootfs(asked) => Some(
            Root::open(path)
                .map_err(Error::from)
                .context("open the rootfs")?,
        ),
        _ => None,
    };
    let files = Files(root);
    let user = asked.user()?;
    let (uid, gid) = match user.as_str() {
        "" => (0, 0),
        user => identify(user, &files)?,
    };
    let mut groups = BTreeSet::from([gid]);
    match SupplementalGroupsPolicy::try_from(asked.policy) {
        Ok(SupplementalGroupsPolicy::Merge) => groups.extend(memberships(&asked.name(), &files)?),
        Ok(SupplementalGroupsPolicy::Strict) => {}
        Err(_) => {
            return Err(Error::new(
                corten_core::Kind::Unknown,
                format!(
                    "not implemented in this containerd release: SupplementalGroupsPolicy={}",
                    asked.policy
                ),
            ));
        }
    }
    for &group in asked.groups {
        let group = u32::try_from(group)
            .map_err(|_| Error::invalid(format!("supplemental group {group} is out of range")))?;
        groups.insert(group);
    }
    Ok(User {
        uid,
        gid,
        additional_gids: groups.into_iter().collect(),
        ..User::default()
    })
}

/// User and group of a user string that is not empty.
fn identify(user: &str, files: &Files) -> Result<(u32, u32)> {
    let out_of_range =
        |what: &str| Error::invalid(format!("invalid USER value {user:?}: {what} out of range"));
    let id = |text: &str, what: &str| match number(text) {
        Some(n) if (0..=MAX_ID).contains(&n) => {
            u32::try_from(n).map(Some).map_err(|_| out_of_range(what))
        }
        Some(_) => Err(out_of_range(what)),
        None => Ok(None),
    };
    let Some((name, group)) = user.split_once(':') else {
        return match id(user, "uid")? {
            Some(uid) => Ok((uid, files.account(|a| a.uid == uid)?.map_or(0, |a| a.gid))),
            None => files
                .account(|a| a.name == user)?
                .map(|a| (a.uid, a.gid))
                .ok_or_else(|| unknown_user(user)),
        };
    };
    if group.contains(':') {
        return Err(Error::invalid(format!("invalid USER value {user}")));
    }
    let uid = match id(name, "uid")? {
        Some(uid) => uid,
        None if name.is_empty() => 0,
        None => files
            .account(|a| a.name == name)?
            .map(|a| a.uid)
            .ok_or_else(|| unknown_user(name))?,
    };
    let gid = match id(group, "gid")? {
        Some(gid) => gid,
        None if group.is_empty() => 0,
        None => files
            .groups(|g| g.name == group)?
            .first()
            .map(|g| g.gid)
            .ok_or_else(|| {
                Error::not_found(format!("group {group:?} of the image: no groups found"))
            })?,
    };
    Ok((uid, gid))
}

/// Groups that list the user, by its name or its number. A user that is nobody is in none.
fn memberships(user: &str, files: &Files) -> Result<Vec<u32>> {
    let name = match number(user) {
        None => user.to_owned(),
        Some(uid) => match files.account(|a| i64::from(a.uid) == uid)? {
            Some(account) => account.name,
            None => return Ok(Vec::new()),
        },
    };
    let of_user = |g: &Group| g.name != name && g.members.contains(&name);
    Ok(files.groups(of_user)?.into_iter().map(|g| g.gid).collect())
}

fn unknown_user(name: &str) -> Error {
    Error::not_found(format!("user {name:?} of the image: no users found"))
}

/// A number as Go's Atoi takes it; one that no integer holds is a number too, and out of every range.
fn number(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(i64::MAX))
}

/// The account of a passwd line.
fn account(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let uid = fields.nth(1).and_then(valid_id)?;
    let gid = fields.next().map_or(Some(0), valid_id)?;
    Some(Account { name, uid, gid })
}

/// The group of a group line.
fn group(line: &str) -> Option<Group> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let gid = fields.nth(1).and_then(valid_id)?;
    let members = fields.next().unwrap_or_default();
    let members = members.split(',').filter(|m| !m.is_empty());
    Some(Group {
        name,
        gid,
        members: members.map(str::to_owned).collect(),
    })
}

fn valid_id(text: &str) -> Option<u32> {
    let id = number(text).filter(|n| (0..=MAX_ID).contains(n))?;
    u32::try_from(id).ok()
}

// === impl Asked ===

impl Asked<'_> {
    /// The user as one string: the CRI's, or else the image's.
    fn user(&self) -> Result<String> {
        let user = match (self.username, self.uid) {
            ("", Some(uid)) => uid.value.to_string(),
            (name, _) => name.to_owned(),
        };
        match self.gid {
            Some(gid) if user.is_empty() => Err(Error::invalid(format!(
                "failed to generate user string: user group \"{}\" is specified without user",
                gid.value
            ))),
            Some(gid) => Ok(format!("{user}:{}", gid.value)),
            None if user.is_empty() => Ok(self.image.to_owned()),
            None => Ok(user),
        }
    }

    /// Whose groups count.
    fn name(&self) -> String {
        match (self.username, self.uid) {
            ("", Some(uid)) => uid.value.to_string(),
            ("", None) => match self.image.split(':').next() {
                None | Some("") => "0".into(),
                Some(user) => user.to_owned(),
            },
            (name, _) => name.to_owned(),
        }
    }
}

/// The rootfs, if there is one to look into.
struct Files(Option<Root>);

// === impl Files ===

impl Files {
    /// The first account that `wanted` takes; none without a file.
    fn account(&self, wanted: impl Fn(&Account) -> bool) -> Result<Option<Account>> {
        let text = self.read(PASSWD)?;
        let mut accounts = lines(&text).filter_map(account);
        Ok(accounts.find(wanted))
    }

    fn groups(&self, wanted: impl Fn(&Group) -> bool) -> Result<Vec<Group>> {
        let text = self.read(GROUP)?;
        let groups = lines(&text).filter_map(group);
        Ok(groups.filter(wanted).collect())
    }

    /// The file's text; empty where there is none.
    fn read(&self, path: &str) -> Result<String> {
        let Some(root) = &self.0 else {
            return Err(Error::internal(format!(
                "{path} is needed, and no rootfs is mounted"
            )));
        };
        match read(root, path) {
            Ok(text) => Ok(text),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(e) => Err(Error::from(e)).context(format!("read {path} of the image")),
        }
    }
}

fn read(root: &Root, path: &str) -> io::Result<String> {
    // Opening is for looking at first: a FIFO would block, a device would do what devices do.
    let found = root.resolve(Path::new(path))?;
    let stat = rustix::fs::fstat(found.as_fd())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::other(format!("{path} is not a regular file")));
    }
    let mut text = Vec::new();
    let file = File::open(magic_path(&found))?;
    file.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!(
            "{path:?} exceeds {MAX_FILE} bytes"
        )));
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    let trimmed = text.lines().map(str::trim);
    trimmed.filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests;
