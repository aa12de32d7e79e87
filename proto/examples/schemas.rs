//! Writes the JSON Schemas of everything that the agent prints as JSON into a folder: `cargo xtask gen` runs it.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("give a folder")?);
    for (name, schema) in sekisho_proto::schema::all()? {
        std::fs::write(folder.join(name), serde_json::to_string_pretty(&schema)? + "\n")?;
    }
    Ok(())
}
