//! Merging one config table over another, with containerd's rules.

/// Merges `over` into `base`: tables deeply, lists by appending what is new, scalars by replacing unless the new
/// value is Go's zero value ("", 0, false), which containerd's merge cannot tell from "not set".
pub(super) fn merge(base: &mut toml::Table, over: toml::Table) {
    merge_at(base, over, 0);
}

fn merge_at(base: &mut toml::Table, over: toml::Table, depth: usize) {
    for (key, value) in over {
        // Within a plugin's table every value replaces: they are merged as maps, not as structs.
        let plugin_value = depth >= 2;
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => {
                let next = if depth == 0 && key != "plugins" {
                    0
                } else {
                    depth + 1
                };
                merge_at(old, new, next);
            }
            (Some(toml::Value::Array(old)), toml::Value::Array(new)) if !plugin_value => {
                for v in new {
                    if !old.contains(&v) {
                        old.push(v);
                    }
                }
            }
            (Some(old), new) => {
                if plugin_value || !is_zero(&new) {
                    *old = new;
                }
            }
            (None, new) => {
                base.insert(key, new);
            }
        }
    }
}

fn is_zero(v: &toml::Value) -> bool {
    match v {
        toml::Value::String(s) => s.is_empty(),
        toml::Value::Integer(i) => *i == 0,
        toml::Value::Float(f) => *f == 0.0,
        toml::Value::Boolean(b) => !b,
        _ => false,
    }
}
