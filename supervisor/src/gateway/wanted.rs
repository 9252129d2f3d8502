//! Names of plugins that a client follows: kept as one text, so that a thousand of them
//! are let go of as quickly as one.

/// All of them, if there are none.
#[derive(Debug)]
pub(super) struct Wanted {
    text: String,
    /// Where each is, in their order.
    places: Box<[(usize, usize)]>,
}

impl Wanted {
    pub(super) fn new(mut names: Vec<String>) -> Self {
        names.sort_unstable();
        let text = names.concat();
        let mut end = 0;
        let place = |name: &String| {
            let start = end;
            end += name.len();
            (start, end)
        };
        let places = names.iter().map(place).collect();
        Wanted { text, places }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        let found = self.places.binary_search_by(|(start, end)| self.text[*start..*end].cmp(name));
        self.places.is_empty() || found.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_nothing_else() {
        let wanted = |names: &[&str]| Wanted::new(names.iter().map(ToString::to_string).collect());
        assert!(wanted(&[]).has("anything"));
        let some = wanted(&["words", "image", "b", "image"]);
        assert!(some.has("image") && some.has("b") && some.has("words"));
        assert!(!some.has("") && !some.has("im") && !some.has("imagewords") && !some.has("z"));
    }
}
