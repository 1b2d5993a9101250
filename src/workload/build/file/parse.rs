//! From text to [`BuildFile`].

use super::ast::{BuildFile, GlobalArg, Instruction, Stage, Step};
use super::error::{FileError, Problem};
use super::instruction::Words;
use super::limits::{FILE_BYTES, STAGES, STEPS};
use super::lines::{Line, Lines};

/// Parses a build file. `name` is what errors call it.
pub fn parse(name: &str, text: &[u8]) -> Result<BuildFile, FileError> {
    let whole = |problem: Problem| problem.at(name, 0, "");
    if text.len() as u64 > FILE_BYTES {
        return Err(whole(Problem::new(format!("it is longer than {FILE_BYTES} bytes"))));
    }
    let text = std::str::from_utf8(text).map_err(|_| whole(Problem::not_text()))?;
    if text.contains('\0') {
        return Err(whole(Problem::not_text()));
    }
    let mut file = BuildFile {
        name: name.to_owned(),
        escape: '\\',
        global_args: Vec::new(),
        stages: Vec::new(),
    };
    let mut steps = 0;
    let mut lines = Lines::new(text);
    while let Some(line) = lines.next().map_err(|(line, problem)| problem.at(name, line, ""))? {
        file.escape = lines.escape();
        steps += 1;
        if steps > STEPS {
            let message = format!("there are more than {STEPS} instructions");
            return Err(Problem::new(message).at(name, line.number, ""));
        }
        add(&mut file, line)?;
    }
    match file.stages.is_empty() {
        true => Err(whole(Problem::new("missing FROM instruction"))),
        false => Ok(file),
    }
}

fn add(file: &mut BuildFile, line: Line) -> Result<(), FileError> {
    let number = line.number;
    let words = Words::new(&line, file.escape).map_err(|problem| problem.at(&file.name, number, ""))?;
    let instruction = words.name;
    let fail = |problem: Problem| problem.at(&file.name, number, instruction);
    if instruction == "FROM" {
        if file.stages.len() == STAGES {
            return Err(fail(Problem::new(format!("there are more than {STAGES} stages"))));
        }
        let from = words.from().map_err(fail)?;
        file.stages.push(Stage {
            line: number,
            base: from.base,
            platform: from.platform,
            name: from.name,
            steps: Vec::new(),
            text: line.text,
        });
        return Ok(());
    }
    let parsed = words.instruction().map_err(fail)?;
    match (file.stages.last_mut(), parsed) {
        (Some(stage), instruction) => stage.steps.push(Step {
            line: number,
            instruction,
            file: file.name.clone(),
            escape: file.escape,
            text: line.text,
        }),
        (None, Instruction::Arg(args)) => {
            let args = args.into_iter().map(|arg| GlobalArg { line: number, arg });
            file.global_args.extend(args);
        }
        (None, _) => {
            let message = "missing FROM instruction before this one; only ARG may be there";
            return Err(fail(Problem::new(message)));
        }
    }
    Ok(())
}
