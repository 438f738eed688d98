//! Tables of text, and colour where a person reads them.

use std::ffi::OsString;
use std::io::IsTerminal;

/// How a piece of text stands out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// Like the text around it.
    #[default]
    Plain,
    /// What passes.
    Good,
    /// What is refused.
    Bad,
    /// What should not be.
    Alarm,
    /// What matters less.
    Faint,
    /// A heading.
    Heading,
}

/// Whether tones are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint(bool);

impl Paint {
    /// Colours for standard output, unless it is no terminal, one that knows none, or `NO_COLOR` is set.
    pub fn for_stdout() -> Self {
        Self::on(std::io::stdout().is_terminal(), std::env::var_os("TERM"), std::env::var_os("NO_COLOR"))
    }

    fn on(terminal: bool, term: Option<OsString>, no_color: Option<OsString>) -> Self {
        let unknown = term.is_some_and(|term| term == "dumb");
        let unwanted = no_color.is_some_and(|value| !value.is_empty());
        Self(terminal && !unknown && !unwanted)
    }

    /// No colours.
    #[cfg(test)]
    pub const fn none() -> Self {
        Self(false)
    }

    /// `text` in its tone.
    pub fn text(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Alarm => "1;97;41",
            Tone::Faint => "2",
            Tone::Heading => "1",
        };
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// One cell.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell with a tone.
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), tone: Tone::Plain }
    }
}

/// A table whose columns are as wide as their widest cell.
#[derive(Clone, Debug)]
pub struct Table {
    heading: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these headings.
    pub fn new<T: Into<String>>(heading: impl IntoIterator<Item = T>) -> Self {
        Self { heading: heading.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Width of the widest line, in characters.
    pub fn width(&self) -> usize {
        let widths = self.widths();
        widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1)
    }

    /// The lines, without blanks at their ends, each ended by a newline.
    pub fn render(&self, paint: Paint) -> String {
        let widths = self.widths();
        let heading: Vec<Cell> = self.heading.iter().map(|text| Cell::toned(text.as_str(), Tone::Heading)).collect();
        let mut lines = String::new();
        for row in std::iter::once(&heading).chain(&self.rows) {
            let last = row.iter().rposition(|cell| !cell.text.is_empty());
            for (column, cell) in row.iter().enumerate().take(last.map_or(0, |last| last + 1)) {
                lines.push_str(&paint.text(cell.tone, &cell.text));
                if Some(column) != last {
                    lines.push_str(&" ".repeat(widths[column] - characters(&cell.text) + 2));
                }
            }
            lines.push('\n');
        }
        lines
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).chain([self.heading.len()]).max().unwrap_or(0);
        (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| characters(&cell.text));
                cells.chain(self.heading.get(column).map(|text| characters(text))).max().unwrap_or(0)
            })
            .collect()
    }
}

/// A number of things, in words that fit it.
pub fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

fn characters(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(["POD", "ADDRESS"]);
        table.row(["shop/a".into(), Cell::toned("10.0.0.1", Tone::Good)]);
        table.row(["shop/longer".into(), "".into()]);
        table
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_blanks_at_their_ends() {
        assert_eq!(sample().render(Paint::none()), "POD          ADDRESS\nshop/a       10.0.0.1\nshop/longer\n");
        assert_eq!(sample().width(), 11 + 2 + 8);
    }

    #[test]
    fn one_thing_is_named_as_one() {
        let rules = [0, 1, 2].map(|number| count(number, "rule", "rules"));
        assert_eq!(rules, ["0 rules", "1 rule", "2 rules"]);
    }

    #[test]
    fn colour_is_for_terminals_that_know_it_and_users_who_want_it() {
        for (term, no_color, coloured) in [
            (None, None, true),
            (Some("xterm"), None, true),
            (Some("xterm"), Some(""), true),
            (Some("xterm"), Some("1"), false),
            (Some("dumb"), None, false),
        ] {
            let on = |terminal| Paint::on(terminal, term.map(OsString::from), no_color.map(OsString::from));
            assert_eq!(on(true), Paint(coloured), "TERM={term:?} NO_COLOR={no_color:?}");
            assert_eq!(on(false), Paint(false), "no terminal");
        }
    }

    #[test]
    fn colour_does_not_move_the_columns() {
        let coloured = sample().render(Paint(true));
        assert!(coloured.contains("\x1b[32m10.0.0.1\x1b[0m"));
        let mut plain = coloured;
        for code in ["\x1b[32m", "\x1b[1m", "\x1b[0m"] {
            plain = plain.replace(code, "");
        }
        assert_eq!(plain, sample().render(Paint::none()));
    }
}
