//! Finds the line of a path (`services.db.ports[0]`) by scanning the text: the parser's values carry no positions. Block style is followed by
//! indentation; within flow style the line of the nearest enclosing block key is given.

use super::LoadError;

/// Names the file and line of an error that has none: the last file that has the whole path, else the one that has most of it.
pub(super) fn fill(error: &mut LoadError, texts: &[(&str, &str)]) {
    if !error.file.is_empty() {
        return;
    }
    let segments = error.path.as_deref().map(split).unwrap_or_default();
    let mut best: Option<(usize, &str, Option<usize>)> = None;
    for (file, text) in texts {
        let (matched, line) = find(text, &segments);
        if best.is_none_or(|(most, ..)| matched > 0 && matched >= most) {
            best = Some((matched, file, line));
        }
    }
    if let Some((_, file, line)) = best {
        error.file = (*file).to_owned();
        error.line = line;
    }
}

enum Segment {
    Key(String),
    Index(usize),
}

fn split(path: &str) -> Vec<Segment> {
    let mut out = Vec::new();
    for part in path.split('.') {
        let (key, mut rest) = part.find('[').map_or((part, ""), |at| part.split_at(at));
        if !key.is_empty() {
            out.push(Segment::Key(key.to_owned()));
        }
        while let Some((index, after)) = rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
            if let Ok(index) = index.parse() {
                out.push(Segment::Index(index));
            }
            rest = after;
        }
    }
    out
}

fn indent(line: &str) -> Option<usize> {
    let trimmed = line.trim_start();
    if trimmed.is_empty() || trimmed.starts_with('#') { None } else { Some(line.len() - trimmed.len()) }
}

fn is_key(text: &str, key: &str) -> bool {
    let unquoted = text.strip_prefix(['"', '\'']).unwrap_or(text);
    unquoted.strip_prefix(key).is_some_and(|rest| rest.trim_start_matches(['"', '\'']).trim_start().starts_with(':'))
}

/// How many segments were found, and the line (from 1) of the last one.
fn find(text: &str, segments: &[Segment]) -> (usize, Option<usize>) {
    let lines: Vec<&str> = text.lines().collect();
    let (mut from, mut to) = (0, lines.len());
    let mut least = 0usize;
    let mut found = None;
    for (matched, segment) in segments.iter().enumerate() {
        // The block's own indentation: that of its first line.
        let Some(own) = lines[from..to].iter().find_map(|l| indent(l)).filter(|i| *i >= least) else {
            return (matched, found);
        };
        let hit = match segment {
            Segment::Key(key) => (from..to).find(|i| indent(lines[*i]) == Some(own) && is_key(lines[*i].trim_start(), key)),
            Segment::Index(index) => {
                (from..to).filter(|i| indent(lines[*i]) == Some(own) && lines[*i].trim_start().starts_with('-')).nth(*index)
            }
        };
        let Some(hit) = hit else { return (matched, found) };
        found = Some(hit + 1);
        let is_list = |i: usize| lines[i].trim_start().starts_with('-');
        // A list may sit at the indentation of its key.
        let ends = |i: usize| indent(lines[i]).is_some_and(|n| n < own || (n == own && (is_list(hit) || !is_list(i))));
        to = (hit + 1..to).find(|i| ends(*i)).unwrap_or(to);
        from = hit + 1;
        least = if is_list(hit) { own + 1 } else { own };
    }
    (segments.len(), found)
}
