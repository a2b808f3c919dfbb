//! SVG, as far as the picture needs it.

use std::fmt::Write;

/// A drawing that grows.
#[derive(Default)]
pub(super) struct Drawing {
    body: String,
}

/// Where a text hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    /// Its begin is at the point.
    Start,
    /// Its middle is.
    Middle,
    /// Its end is.
    End,
}

/// How a text looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// Height in pixels.
    pub(super) size: f64,
    /// Colour.
    pub(super) fill: &'static str,
    /// Bold.
    pub(super) bold: bool,
    /// Where it hangs.
    pub(super) anchor: Anchor,
}

/// Plain text.
pub(super) const TEXT: Style = Style {
    size: 13.0,
    fill: "#24292f",
    bold: false,
    anchor: Anchor::Start,
};

/// Text that steps back.
pub(super) const FAINT: Style = Style {
    size: 12.0,
    fill: "#6b7280",
    bold: false,
    anchor: Anchor::Start,
};

/// A heading.
pub(super) const HEADING: Style = Style {
    size: 17.0,
    fill: "#111827",
    bold: true,
    anchor: Anchor::Start,
};

impl Style {
    /// The same with another anchor.
    pub(super) const fn at(self, anchor: Anchor) -> Self {
        Self { anchor, ..self }
    }

    /// The same in another size.
    pub(super) const fn sized(self, size: f64) -> Self {
        Self { size, ..self }
    }

    /// The same in another colour.
    pub(super) const fn in_colour(self, fill: &'static str) -> Self {
        Self { fill, ..self }
    }

    /// The same in bold.
    pub(super) const fn bold(self) -> Self {
        Self { bold: true, ..self }
    }
}

impl Drawing {
    /// A filled rectangle with rounded corners and a text that shows when pointed at.
    pub(super) fn rect(
        &mut self,
        (x, y, width, height): (f64, f64, f64, f64),
        fill: &str,
        radius: f64,
        title: &str,
    ) {
        let title = if title.is_empty() {
            String::new()
        } else {
            format!("<title>{}</title>", escaped(title))
        };
        self.push(format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\" rx=\"{radius}\" fill=\"{fill}\">{title}</rect>",
            width.max(0.0)
        ));
    }

    /// An empty rectangle with a line around it.
    pub(super) fn frame(&mut self, (x, y, width, height): (f64, f64, f64, f64), stroke: &str) {
        self.push(format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"3\" fill=\"none\" stroke=\"{stroke}\"/>"
        ));
    }

    /// A straight line.
    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), stroke: &str, width: f64) {
        self.push(format_args!(
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{stroke}\" stroke-width=\"{width}\"/>",
            from.0, from.1, to.0, to.1
        ));
    }

    /// A filled shape through points.
    pub(super) fn shape(&mut self, points: &[(f64, f64)], fill: &str, opacity: f64) {
        let mut path = String::new();
        for (x, y) in points {
            // Writing to a string does not fail.
            let _ = write!(path, "{x:.1},{y:.1} ");
        }
        self.push(format_args!(
            "<polygon points=\"{}\" fill=\"{fill}\" fill-opacity=\"{opacity}\"/>",
            path.trim_end()
        ));
    }

    /// A text.
    pub(super) fn text(&mut self, x: f64, y: f64, style: Style, text: &str) {
        let anchor = match style.anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let weight = if style.bold {
            " font-weight=\"600\""
        } else {
            ""
        };
        self.push(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{}\" fill=\"{}\" text-anchor=\"{anchor}\"{weight}>{}</text>",
            style.size,
            style.fill,
            escaped(text)
        ));
    }

    fn push(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.body, "{element}");
    }

    /// The whole file.
    pub(super) fn finish(self, width: f64, height: f64) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" \
             font-family=\"'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{}</svg>\n",
            self.body
        )
    }
}

/// How wide a text is, roughly: enough to decide whether it fits.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * 0.6
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML has no way to write these.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Drawing, TEXT};

    #[test]
    fn what_a_kernel_says_cannot_break_the_file() {
        let mut drawing = Drawing::default();
        drawing.text(0.0, 0.0, TEXT, "<script>&\"\u{1}");
        drawing.rect((0.0, 0.0, -1.0, 1.0), "#fff", 0.0, "</title>");
        let file = drawing.finish(10.0, 10.0);
        assert!(file.contains("&lt;script&gt;&amp;&quot; "));
        assert!(!file.contains("</title></title>"));
        assert!(!file.contains("width=\"-"));
    }
}
