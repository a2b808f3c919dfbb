//! Where things lie: the workspace and its target directory.

use std::env;
use std::path::{Path, PathBuf};

/// The root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The target directory: `CARGO_TARGET_DIR` where it is set, else `target` in the workspace.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(set) if !set.is_empty() => workspace().join(set),
        _ => workspace().join("target"),
    }
}

/// `path` as a person would type it from the workspace, where that is shorter.
pub(crate) fn shown(path: &Path) -> String {
    path.strip_prefix(workspace())
        .unwrap_or(path)
        .display()
        .to_string()
}
