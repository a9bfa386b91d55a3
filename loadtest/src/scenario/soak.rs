//! `soak`: real instances that things are done to, and whether every promise is kept. The run itself is in the `soak` crate.

use ::soak::SoakArguments;
use serde_json::{Value, json};

use crate::args::OutputArguments;
use crate::origin::origin;
use crate::report::{Report, Table};

/// Where the report goes.
pub fn output(arguments: &SoakArguments) -> OutputArguments {
    let SoakArguments { json, html, svg, quiet, .. } = arguments;
    OutputArguments { json: *json, html: html.clone(), svg: svg.clone(), quiet: *quiet }
}

/// Runs the scenario.
///
/// # Errors
/// The run could not be made; the text says why.
pub fn run(arguments: &SoakArguments) -> Result<Report, String> {
    let found = ::soak::run(arguments)?;
    let mut json = serde_json::to_value(&found).expect("a report is JSON");
    if let Value::Object(object) = &mut json {
        object.insert("scenario".to_owned(), json!("soak"));
        object.insert("origin".to_owned(), origin());
        object.insert("interval_seconds".to_owned(), json!(1.0));
        object.insert("passed".to_owned(), json!(found.is_good()));
    }
    let mut problems: Vec<String> = found.violations.iter().chain(&found.problems).cloned().collect();
    if !problems.is_empty() {
        problems.push(format!("repeat it with --seed {}", found.seed));
    }
    Ok(Report { json, table: Table { rows: found.rows() }, problems, warnings: Vec::new() })
}
