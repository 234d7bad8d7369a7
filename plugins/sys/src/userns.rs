//! Whether the daemon itself runs in a user namespace (rootless, nested).

use std::sync::OnceLock;

/// True unless the whole id range is mapped one to one.
pub fn running_in_user_ns() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|m| !is_initial(&m))
    })
}

fn is_initial(map: &str) -> bool {
    let fields: Vec<_> = map.split_whitespace().collect();
    // An empty map is that of a namespace still being set up.
    fields == ["0", "0", "4294967295"] || fields.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_range_is_the_initial_namespace() {
        assert!(is_initial("         0          0 4294967295\n"));
        assert!(!is_initial("         0       1000          1\n"));
        assert!(!is_initial("0 0 65536\n"));
    }
}
