//! One colour for each owner, the same everywhere in the picture.

/// The colour of `owner`.
pub(super) fn colour(owner: &str) -> &'static str {
    match owner {
        "alpha" | "a" => "#2f6db5",
        "beta" | "b" => "#e08a2c",
        "gamma" | "g" => "#3d9a6c",
        _ if owner.starts_with("workload") => "#8b5cb4",
        "baton" => "#d4b106",
        "firmware" => "#9aa3ad",
        "parked" => "#cbd5e1",
        "quarantined" => "#c62f3b",
        _ => "#e5e7eb",
    }
}

/// A colour light enough to stand behind text in `owner`'s colour.
pub(super) fn tint(owner: &str) -> &'static str {
    match owner {
        "alpha" | "a" => "#dbe8f7",
        "beta" | "b" => "#fbe8d1",
        "gamma" | "g" => "#d7efe2",
        _ => "#f1f3f5",
    }
}

/// What a colour's owner is called in the legend.
pub(super) fn name(owner: &str) -> &str {
    match owner {
        "a" => "alpha",
        "b" => "beta",
        "g" => "gamma",
        other => other,
    }
}
