//! Man pages and shell completions, made from the command line's own definition: they cannot disagree with it.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::Command;
use clap_complete::Shell;

/// Prints the completion script of `shell`.
pub(crate) fn completion(mut command: Command, shell: Shell) -> Result<()> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    std::io::stdout()
        .lock()
        .write_all(&script)
        .context("write the completion script")
}

/// Writes `cortend.8` and a page for each sub-command into `dir`.
pub(crate) fn pages(command: Command, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let mut command = command.disable_help_subcommand(true);
    command.build();
    page(&command, None, dir)
}

fn page(command: &Command, parent: Option<&str>, dir: &Path) -> Result<()> {
    let name = match parent {
        Some(parent) => format!("{parent}-{}", command.get_name()),
        None => command.get_name().to_owned(),
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone())
        .section("8")
        .manual("Corten")
        .render(&mut text)?;
    let path = dir.join(format!("{name}.8"));
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    command
        .get_subcommands()
        .filter(|c| !c.is_hide_set())
        .try_for_each(|c| page(c, Some(&name), dir))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Args;

    #[test]
    fn every_sub_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        pages(Args::command(), dir.path()).unwrap();
        let text = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(
            text("cortend.8").contains(".TH cortend 8"),
            "{}",
            text("cortend.8")
        );
        assert!(text("cortend.8").contains("\\-\\-config"));
        assert!(text("cortend-config-dump.8").contains("cortend\\-config\\-dump"));
        assert!(text("cortend-check.8").contains("host"));
        assert!(text("cortend-oci-hook.8").contains("annotation"));
        assert!(
            !dir.path().join("cortend-man.8").exists(),
            "a hidden command has no page"
        );
    }

    #[test]
    fn completions_know_the_sub_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "cortend", &mut script);
            assert!(String::from_utf8(script).unwrap().contains("publish"));
        }
    }
}
