//! What the kernels' events say, in words for a person who watches.

use crate::event::Event;
use crate::ui::{bytes, duration};

/// The sentence for an event; `None` for one that a person need not see.
pub(super) fn sentence(event: &Event) -> Option<String> {
    let text = |key: &str| event.get(key).unwrap_or("?").to_owned();
    let number = |key: &str| event.number(key).ok();
    let size = |key: &str| number(key).map_or_else(|| text(key), bytes);
    let time = |key: &str| number(key).map_or_else(|| text(key), duration);
    Some(match event.word.as_str() {
        "up" => format!(
            "kernel {} is up: ABI {}, {} CPUs, {}",
            text("kernel"),
            text("abi"),
            text("cpus"),
            size("memory")
        ),
        "plug" => "asks for its devices".to_owned(),
        "serving" => match event.get("swap") {
            Some(swap) => format!("serves (swap {swap})"),
            None => "serves".to_owned(),
        },
        "step" => {
            let failed = if event.yes("failed") {
                format!(" FAILED: {}", text("text"))
            } else {
                String::new()
            };
            format!("{:<12} {:>10}{failed}", text("name"), time("ns"))
        }
        "plan" => match event.get("kind") {
            Some("cpu") => format!("plan: CPU {}", text("id")),
            Some("memory") => format!("plan: {} of memory at {}", size("length"), text("base")),
            Some("function") => format!("plan: function {}", text("id")),
            Some("bus") => format!("plan: bus {}", text("id")),
            _ => return None,
        },
        "refused" => format!("refused by rule {}: {}", text("rule"), text("text")),
        "warning" => format!("warning, rule {}: {}", text("rule"), text("text")),
        "attempt" => {
            let verdict = if event.yes("blocked") {
                "blocked"
            } else {
                "NOT BLOCKED"
            };
            let record = if event.yes("fault") {
                format!(
                    "; record: source {}, address {}, {}",
                    text("source"),
                    text("address"),
                    text("reason")
                )
            } else {
                String::new()
            };
            format!(
                "{} by {} on {}: {verdict}{record}",
                text("kind"),
                text("by"),
                text("target")
            )
        }
        "handoff" => format!("handoff of {}, ABI {}", size("bytes"), text("version")),
        "ready" => format!(
            "successor is ready; launch to ready {}",
            time("launch_to_ready_ns")
        ),
        "frozen" => format!("frozen: {} at {}", size("length"), text("workload")),
        "committed" => "committed".to_owned(),
        "retired" => "retired".to_owned(),
        "reclaimed" => format!(
            "reclaimed {} CPUs, {}, {} devices",
            text("cpus"),
            size("bytes"),
            text("devices")
        ),
        "unreclaimed" => format!(
            "not reclaimed: {} ({}): {}",
            text("what"),
            size("bytes"),
            text("why")
        ),
        "fence" => format!(
            "fence: {} devices moved at once, {} invalidation",
            text("devices"),
            text("method").to_lowercase()
        ),
        "rolled-back" | "undo" | "undone" | "taken" | "quarantined" => event.to_string(),
        "panic" | "exception" => format!("*** {event}"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::sentence;
    use crate::event::Event;

    fn told(line: &str) -> Option<String> {
        sentence(&Event::parse(line).unwrap())
    }

    #[test]
    fn events_become_sentences() {
        assert_eq!(
            told("@up kernel=beta abi=0.2 cpus=2 memory=536870912").unwrap(),
            "kernel beta is up: ABI 0.2, 2 CPUs, 512 MiB"
        );
        assert!(
            told("@attempt n=1 kind=dma-write by=03:00.0 target=ledger blocked=no fault=no")
                .unwrap()
                .contains("NOT BLOCKED")
        );
        assert_eq!(told("@owner phase=x kind=cpu id=1 owner=alpha"), None);
    }

    #[test]
    fn an_event_without_its_values_is_no_reason_to_panic() {
        for word in [
            "up",
            "step",
            "plan",
            "refused",
            "attempt",
            "reclaimed",
            "handoff",
            "ready",
        ] {
            let _ = told(&format!("@{word}"));
        }
    }
}
