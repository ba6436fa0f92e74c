//! Text for studies that have none: documents from a seeded grammar, and a handbook that is shipped.
//!
//! Eight kinds of documents over a dozen topics: stories, dialogues, definitions, measurements, instructions,
//! letters, ledgers, and questions. People, places and things stay the same within a document, sums are right, and
//! sentences are drawn freely, so a small model can learn much of it and never all of it. A document is a
//! function of (seed, number).

use crate::compute::rng::{Purpose, Rng};

use super::Document;
use words::{
    ADVERBS, COLOURS, DAYS, FAMILY_ENDINGS, FEELINGS, FIRST_SYLLABLES, MIDDLE_SYLLABLES, MORE_ADJECTIVES, MORE_THINGS,
    MORE_VERBS, NAMES, REASONS, TIMES, TOPICS, TOWN_ENDINGS, Topic,
};

mod words;
pub mod world;

/// The shipped text; its own paragraphs are documents.
pub const HANDBOOK: &str = include_str!("../../../../configs/corpus/handbook.txt");

/// Documents `0..count` of the grammar with `seed`.
pub fn documents(seed: u32, count: u64) -> impl Iterator<Item = Document> {
    (0..count).map(move |n| Document::plain(format!("generated#{n}"), document(seed, n)))
}

/// Document `n` of the grammar with `seed`: 60 to 250 words.
pub fn document(seed: u32, n: u64) -> String {
    let mut w = Writer::new(Rng::new(seed, Purpose::Corpus, 0, n));
    match w.rng.below(8) {
        0 | 1 => w.story(),
        2 => w.dialogue(),
        3 => w.definition(),
        4 => w.measurements(),
        5 => w.instructions(),
        6 => {
            if w.rng.below(2) == 0 {
                w.letter()
            } else {
                w.questions()
            }
        }
        _ => w.ledger(),
    }
    w.text
}

struct Writer {
    rng: Rng,
    text: String,
    topic: &'static Topic,
    people: [&'static str; 2],
    place: &'static str,
    /// A town and a family name that hold for the whole document.
    town: String,
    family: String,
}

impl Writer {
    fn new(mut rng: Rng) -> Self {
        let topic = &TOPICS[rng.index(TOPICS.len())];
        let pair = rng.distinct(NAMES.len(), 2);
        let place = topic.places[rng.index(topic.places.len())];
        let town = invented(&mut rng, &TOWN_ENDINGS);
        let family = invented(&mut rng, &FAMILY_ENDINGS);
        Self { rng, text: String::new(), topic, people: [NAMES[pair[0]], NAMES[pair[1]]], place, town, family }
    }

    /// From the topic mostly, else from the words that fit everywhere.
    fn either(&mut self, own: &[&'static str], other: &[&'static str]) -> &'static str {
        if self.rng.below(3) > 0 { self.pick(own) } else { self.pick(other) }
    }

    fn adjective(&mut self) -> &'static str {
        self.either(&self.topic.adjectives, &MORE_ADJECTIVES)
    }

    fn verb(&mut self) -> &'static str {
        self.either(&self.topic.past, &MORE_VERBS)
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.rng.index(from.len())]
    }

    fn say(&mut self, sentence: impl AsRef<str>) {
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            self.text.push(' ');
        }
        self.text.push_str(sentence.as_ref());
    }

    fn line(&mut self, line: impl AsRef<str>) {
        self.text.push_str(line.as_ref());
        self.text.push('\n');
    }

    /// A count from `low` on; small counts are more frequent than large ones.
    fn count(&mut self, low: u64, span: u64) -> u64 {
        low + self.rng.below(span).min(self.rng.below(span))
    }

    fn thing(&mut self) -> String {
        let topic = self.topic;
        let thing = self.either(&topic.things, &MORE_THINGS);
        match self.rng.below(8) {
            0 => format!("the {thing}"),
            1 => format!("the {} {thing}", self.pick(&COLOURS)),
            2 => format!("the {} {thing}", self.adjective()),
            3 => format!("{} {thing}s", number_word(self.count(2, 11))),
            4 => format!("the {}, {} {thing}", self.adjective(), self.adjective()),
            5 => format!("{} {thing} made of {}", article(thing).to_lowercase(), self.pick(&topic.materials)),
            6 => format!("the {thing} that {} had {}", self.pick(&self.people.clone()), self.verb()),
            _ => format!("the {thing} from the {}", self.pick(&topic.places)),
        }
    }

    fn person(&mut self) -> String {
        match self.rng.below(7) {
            0 | 1 => self.people[0].to_owned(),
            2 | 3 => self.people[1].to_owned(),
            4 => format!("{} {}", self.people[0], self.family),
            5 => format!("somebody from {}", self.town),
            _ => format!("the {}", self.pick(&self.topic.roles)),
        }
    }

    fn event(&mut self) -> String {
        let (who, verb, what) = (self.person(), self.verb(), self.thing());
        match self.rng.below(8) {
            0 => format!("{who} {verb} {what} {}", self.pick(&REASONS)),
            1 => format!("{who} {verb} {what} and was {}", self.pick(&FEELINGS)),
            2 => format!("{who} {verb} {what} near the {}", self.place),
            3 => format!("{what} was never {verb} again"),
            6 => format!("{who} {verb} {what} {}", self.pick(&ADVERBS)),
            7 => format!("{who} {verb} {what} on the way to {}", self.town),
            4 => format!("{who} {verb} {what} with {}", self.pick(&self.topic.materials)),
            _ => format!("{who} {verb} {what}"),
        }
    }

    fn story(&mut self) {
        let [a, b] = self.people;
        let (name, place, day) = (self.topic.name, self.place, self.pick(&DAYS));
        let role = self.pick(&self.topic.roles);
        match self.rng.below(3) {
            0 => {
                let town = self.town.clone();
                self.say(format!("On {day} {a} came from {town} to {name} to meet {b}, the {role}."));
            }
            1 => {
                let years = number_word(self.rng.below(19) + 2);
                self.say(format!("{a} had worked at {name} for {years} years."));
            }
            _ => self.say(format!("Nobody at {name} knew {a} before that {day}, least of all {b}.")),
        }
        for _ in 0..self.count(4, 8) {
            let event = self.event();
            let sentence = match self.rng.below(5) {
                0 => format!("{} {event}.", self.pick(&TIMES)),
                1 => {
                    let thing = self.thing();
                    format!("{} {event}, but {thing} was {}.", self.pick(&TIMES), self.adjective())
                }
                2 => format!("Then {event}."),
                3 => format!("{}.", capital(&event)),
                _ => format!("{} and {}.", capital(&event), self.event()),
            };
            self.say(sentence);
        }
        let ending = match self.rng.below(3) {
            0 => format!("In the end {a} and {b} left the {place} together, {}.", self.pick(&FEELINGS)),
            1 => format!("That is why people at {name} still speak of {a}."),
            _ => format!("{b} said nothing, and {a} went home by the {place}."),
        };
        self.say(ending);
    }

    fn dialogue(&mut self) {
        let [a, b] = self.people;
        let opening = format!("{a} and {b} meet at the {}.", self.place);
        self.line(opening);
        for turn in 0..self.count(4, 7) {
            let who = if turn % 2 == 0 { a } else { b };
            let thing = self.thing();
            let said = match self.rng.below(7) {
                0 => format!("Have you seen {thing}?"),
                1 => format!("Yes, it is at the {}.", self.pick(&self.topic.places)),
                2 => format!("I {} {thing} on {}.", self.verb(), self.pick(&DAYS)),
                3 => format!("No, {} {} it.", self.person(), self.verb()),
                4 => format!("How many do we need? I think {}.", number_word(self.count(2, 30))),
                5 => format!("I am {} about {thing}.", self.pick(&FEELINGS)),
                _ => format!("Then we need more {}, {}.", self.pick(&self.topic.materials), self.pick(&REASONS)),
            };
            self.line(format!("{who}: {said}"));
        }
        let last = format!("They agree to meet again on {}.", self.pick(&DAYS));
        self.say(last);
    }

    fn definition(&mut self) {
        let topic = self.topic;
        let thing = self.pick(&topic.things);
        self.line(capital(thing));
        let (material, place, role) = (self.pick(&topic.materials), self.place, self.pick(&topic.roles));
        let adjective = self.adjective();
        self.say(format!(
            "{} {thing} is a {} object that is used at {}. It is made of {material} and kept in the {place}, where the {role} looks after it.",
            article(thing),
            adjective,
            topic.name
        ));
        for _ in 0..self.count(2, 5) {
            let (other, n) = (self.pick(&topic.things), self.count(2, 90));
            let sentence = match self.rng.below(6) {
                0 => format!("A usual {thing} measures {n} {}.", topic.unit),
                1 => {
                    format!("It must not be confused with the {other}, which is more {}.", self.adjective())
                }
                5 => {
                    let other = self.thing();
                    format!("Near {} one may still see {other}.", self.town)
                }
                2 => format!(
                    "The first {thing} was {} by {} in 1{}.",
                    self.verb(),
                    self.pick(&NAMES),
                    500 + self.rng.below(500)
                ),
                3 => format!("Compare: {other}, {}.", self.pick(&topic.things)),
                _ => format!("In former times the {thing} was {} with {}.", self.verb(), self.pick(&topic.materials)),
            };
            self.say(sentence);
        }
    }

    fn measurements(&mut self) {
        let (topic, who) = (self.topic, self.people[0]);
        let thing = self.pick(&topic.things);
        self.line(format!("Report from {}, written by {who}.", topic.name));
        let rows = self.count(3, 5);
        let mut values = Vec::new();
        for row in 1..=rows {
            let value = self.count(10, 190);
            values.push(value);
            let place = self.pick(&topic.places);
            self.line(format!("{row}. {thing} at the {place}: {value} {}", topic.unit));
        }
        let (low, high) = (values.iter().min().copied().unwrap_or(0), values.iter().max().copied().unwrap_or(0));
        let sum: u64 = values.iter().sum();
        self.say(format!(
            "The smallest value was {low} and the largest was {high} {}; the sum of all {rows} is {sum}.",
            topic.unit
        ));
        let remark = match self.rng.below(3) {
            0 => format!("{who} was {} with the result.", self.pick(&FEELINGS)),
            1 => format!("The {} one will be measured again on {}.", self.adjective(), self.pick(&DAYS)),
            _ => format!("No value was left out, {}.", self.pick(&REASONS)),
        };
        self.say(remark);
    }

    fn instructions(&mut self) {
        let topic = self.topic;
        let thing = self.pick(&topic.things);
        self.line(format!("How to look after the {thing}"));
        for step in 1..=self.count(3, 6) {
            let (material, other) = (self.pick(&topic.materials), self.pick(&topic.things));
            let n = number_word(self.count(2, 30));
            let text = match self.rng.below(6) {
                0 => format!("Take {n} {} of {material}.", topic.unit),
                1 => format!("Clean the {thing} with {material} and wait {n} minutes."),
                2 => format!("Carry it to the {} and put it beside the {other}.", self.pick(&topic.places)),
                3 => format!("Ask the {} whether the {other} is {}.", self.pick(&topic.roles), self.adjective()),
                4 => format!("If the {other} is {}, go back to step {}.", self.adjective(), self.rng.below(step) + 1),
                _ => format!("Do not touch the {other} before the {thing} is {}.", self.adjective()),
            };
            self.line(format!("Step {step}. {text}"));
        }
        let last =
            format!("With {} the {thing} lasts {} years.", self.pick(&topic.materials), number_word(self.count(2, 19)));
        self.say(last);
    }

    fn letter(&mut self) {
        let [a, b] = self.people;
        let (day, date) = (self.pick(&DAYS), self.rng.below(28) + 1);
        let head = format!("{}, {day} {date}", self.town);
        self.line(head);
        self.line(format!("Dear {b},"));
        let first = format!(
            "I write to you from {}, where it is {} this {}.",
            self.topic.name,
            self.adjective(),
            self.pick(&DAYS)
        );
        self.say(first);
        for _ in 0..self.count(2, 5) {
            let event = self.event();
            let sentence = match self.rng.below(3) {
                0 => format!("You will have heard that {event}."),
                1 => format!("{} {event}.", self.pick(&TIMES)),
                _ => format!("I am {} that {event}.", self.pick(&FEELINGS)),
            };
            self.say(sentence);
        }
        let last = format!("Please send {} before {}.", self.thing(), self.pick(&DAYS));
        self.say(last);
        self.line("");
        let family = self.family.clone();
        self.say(format!("Yours, {a} {family}"));
    }

    fn questions(&mut self) {
        let topic = self.topic;
        for _ in 0..self.count(3, 4) {
            let (a, b) = (self.rng.below(40) + 2, self.rng.below(40) + 2);
            let thing = self.pick(&topic.things);
            let (q, answer) = match self.rng.below(4) {
                0 => (format!("What is {a} plus {b}?"), (a + b).to_string()),
                1 => (format!("There were {} {thing}s and {a} were sold. How many are left?", a + b), b.to_string()),
                2 => (format!("Who {} the {thing}?", self.verb()), capital(&self.person())),
                _ => (format!("Where is the {thing} kept?"), format!("In the {}", self.place)),
            };
            self.line(format!("Question: {q}"));
            self.line(format!("Answer: {answer}."));
        }
    }

    fn ledger(&mut self) {
        let topic = self.topic;
        let title = format!("Ledger of {} for {}", topic.name, self.pick(&DAYS));
        self.line(title);
        let kinds = self.rng.distinct(topic.things.len(), 3);
        let mut total = 0;
        for k in kinds {
            let (n, price) = (self.count(1, 12), self.count(1, 9));
            total += n * price;
            self.line(format!("{n} x {} at {price} = {}", topic.things[k], n * price));
        }
        self.line(format!("total = {total}"));
        let remark = format!("Signed by {} and {} at the {}.", self.people[0], self.people[1], self.place);
        self.say(remark);
        let event = self.event();
        self.say(format!("Note: {event}."));
    }
}

fn invented(rng: &mut Rng, endings: &[&str]) -> String {
    let first = FIRST_SYLLABLES[rng.index(FIRST_SYLLABLES.len())];
    let middle = MIDDLE_SYLLABLES[rng.index(MIDDLE_SYLLABLES.len())];
    format!("{first}{middle}{}", endings[rng.index(endings.len())])
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "An" } else { "A" }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

fn number_word(n: u64) -> String {
    const WORDS: [&str; 13] =
        ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];
    usize::try_from(n).ok().and_then(|n| WORDS.get(n)).map_or_else(|| n.to_string(), |w| (*w).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_functions_of_seed_and_number() {
        let first: Vec<Document> = documents(42, 50).collect();
        assert_eq!(first, documents(42, 50).collect::<Vec<_>>());
        assert_eq!(first[17].text, document(42, 17));
        assert_ne!(first[17].text, document(43, 17));
    }

    #[test]
    fn documents_are_varied_text_of_a_sensible_length() {
        let texts: Vec<String> = documents(42, 400).map(|d| d.text).collect();
        let distinct: std::collections::BTreeSet<&String> = texts.iter().collect();
        assert_eq!(distinct.len(), texts.len());
        for text in &texts {
            let words = text.split_whitespace().count();
            assert!((15..=400).contains(&words), "{words} words: {text}");
        }
        // Openings would repeat if the grammar were a template.
        let openings: std::collections::BTreeSet<&str> =
            texts.iter().map(|t| &t[..t.char_indices().nth(24).map_or(t.len(), |c| c.0)]).collect();
        assert!(openings.len() > 200, "{} openings", openings.len());
    }

    #[test]
    fn sums_are_right() {
        let mut checked = 0;
        for n in 0..600 {
            let text = document(7, n);
            let Some(total) = text.lines().find_map(|l| l.strip_prefix("total = ")) else { continue };
            let sum: u64 = text
                .lines()
                .filter_map(|l| l.split_once(" = "))
                .filter(|(l, _)| l.contains(" at "))
                .map(|(_, v)| v.parse::<u64>().unwrap())
                .sum();
            assert_eq!(total.parse::<u64>().unwrap(), sum, "{text}");
            checked += 1;
        }
        assert!(checked > 30);
    }

    #[test]
    fn the_handbook_is_text_of_the_promised_size() {
        assert!((28_000..=64_000).contains(&HANDBOOK.len()), "{}", HANDBOOK.len());
        assert!(HANDBOOK.split("\n\n").count() > 100);
    }
}
