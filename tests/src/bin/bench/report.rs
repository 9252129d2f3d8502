//! The table: what was measured, against its bar and its aim.

use std::{fmt::Write as _, fs, path::Path};

/// All rows of a run.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    notes: Vec<String>,
}

/// One measurement.
pub struct Row {
    what: String,
    value: f64,
    unit: &'static str,
    bar: f64,
    aim: f64,
    more_is_better: bool,
    detail: String,
}

impl Row {
    pub fn new(what: &str, value: f64, unit: &'static str, bar: f64, aim: f64) -> Self {
        let what = what.to_owned();
        Row { what, value, unit, bar, aim, more_is_better: false, detail: String::new() }
    }

    pub fn ratio(what: &str, value: f64, bar: f64, aim: f64) -> Self {
        Row::new(what, value, "×", bar, aim)
    }

    pub fn more(what: &str, value: f64, bar: f64, aim: f64) -> Self {
        Row { more_is_better: true, ..Row::ratio(what, value, bar, aim) }
    }

    pub fn with(mut self, detail: String) -> Self {
        self.detail = detail;
        self
    }

    fn meets(&self, limit: f64) -> bool {
        if self.more_is_better { self.value >= limit } else { self.value <= limit }
    }

    fn verdict(&self) -> String {
        match (self.meets(self.aim), self.meets(self.bar)) {
            (true, _) => "aim met".to_owned(),
            (false, true) => "bar met".to_owned(),
            (false, false) => {
                format!("**missed** by {:.0} %", (self.value / self.bar - 1.0).abs() * 100.0)
            }
        }
    }
}

impl Report {
    pub fn row(&mut self, row: Row) {
        eprintln!("{}: {:.2} {} ({})", row.what, row.value, row.unit, row.verdict());
        self.rows.push(row);
    }

    pub fn note(&mut self, note: String) {
        eprintln!("{note}");
        self.notes.push(note);
    }

    fn table(&self) -> String {
        let mut text = String::from("| what | measured | bar | aim | |\n|---|---|---|---|---|\n");
        for row in &self.rows {
            let sign = if row.more_is_better { "≥" } else { "≤" };
            let unit = row.unit;
            let detail =
                if row.detail.is_empty() { String::new() } else { format!(" ({})", row.detail) };
            let _ = writeln!(
                text,
                "| {} | {:.2} {unit}{detail} | {sign} {} {unit} | {} {unit} | {} |",
                row.what,
                row.value,
                row.bar,
                row.aim,
                row.verdict()
            );
        }
        text
    }

    /// Replaces what stands between the marks in docs/benchmarks.md.
    pub fn write(&self, whole: bool) {
        let table = self.table();
        println!("\n{table}");
        for note in &self.notes {
            println!("{note}");
        }
        if !whole {
            return;
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks.md");
        let text = fs::read_to_string(&path).expect("docs/benchmarks.md");
        let (begin, end) = ("<!-- measured -->\n", "<!-- /measured -->");
        let (head, rest) = text.split_once(begin).expect("begin mark");
        let (_, tail) = rest.split_once(end).expect("end mark");
        let notes: String = self.notes.iter().map(|note| format!("- {note}\n")).collect();
        fs::write(&path, format!("{head}{begin}{table}\n{notes}{end}{tail}")).expect("write");
    }
}
