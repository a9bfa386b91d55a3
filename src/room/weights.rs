//! Which of many things is the heaviest, within a factor of two, without looking at all of them.

/// Weights of one class lie between a power of two and the next; class 0 is for what weighs nothing.
const CLASSES: usize = usize::BITS as usize + 1;

/// Where a thing stands: its class, and its place among the others of it.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    class: u8,
    index: u32,
}

/// Things with small numbers, and their weights.
#[derive(Debug)]
pub struct Weights {
    /// The numbers of the things of each class, but for class 0.
    classes: Vec<Vec<u32>>,
    places: Vec<Place>,
    turn: usize,
}

impl Default for Weights {
    fn default() -> Self {
        Self { classes: vec![Vec::new(); CLASSES], places: Vec::new(), turn: 0 }
    }
}

impl Weights {
    /// The thing called `number` weighs this much from now on; 0 takes it out.
    pub fn set(&mut self, number: u32, weight: usize) {
        let at = number as usize;
        if at >= self.places.len() {
            self.places.resize(at + 1, Place::default());
        }
        let class = (usize::BITS - weight.leading_zeros()) as u8;
        let before = self.places[at];
        if class == before.class {
            return;
        }
        if before.class > 0 {
            let others = &mut self.classes[usize::from(before.class)];
            others.swap_remove(before.index as usize);
            if let Some(moved) = others.get(before.index as usize) {
                self.places[*moved as usize].index = before.index;
            }
        }
        let others = &mut self.classes[usize::from(class)];
        self.places[at] = Place { class, index: others.len() as u32 };
        if class > 0 {
            others.push(number);
        }
    }

    /// One that no other weighs more than twice as much as, each of those in turn, and `spared` only when there is no
    /// other; nothing when all weigh nothing.
    pub fn heaviest(&mut self, spared: u32) -> Option<u32> {
        let class = self.classes.iter().rev().find(|class| !class.is_empty())?;
        self.turn = self.turn.wrapping_add(1);
        let found = class[self.turn % class.len()];
        Some(if found == spared { class[(self.turn + 1) % class.len()] } else { found })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_weighs_nothing_is_not_there() {
        let mut weights = Weights::default();
        assert_eq!(weights.heaviest(0), None);
        weights.set(3, 100);
        weights.set(7, usize::MAX);
        assert_eq!(weights.heaviest(7), Some(7));
        weights.set(7, 1);
        assert_eq!(weights.heaviest(7), Some(3));
        weights.set(3, 0);
        weights.set(7, 0);
        assert_eq!(weights.heaviest(0), None);
    }

    #[test]
    fn those_of_one_weight_take_turns_and_one_is_spared() {
        let mut weights = Weights::default();
        (0..4).for_each(|number| weights.set(number, 100));
        let found: Vec<_> = (0..8).filter_map(|_| weights.heaviest(2)).collect();
        assert!([0, 1, 3].iter().all(|number| found.contains(number)) && !found.contains(&2), "{found:?}");
    }

    proptest! {
        #[test]
        fn none_is_more_than_twice_as_heavy(changes in proptest::collection::vec((0u32..20, 0usize..5_000), 1..200)) {
            let mut weights = Weights::default();
            let mut known = [0; 20];
            for (number, weight) in changes {
                weights.set(number, weight);
                known[number as usize] = weight;
                let most = *known.iter().max().unwrap();
                match weights.heaviest(0) {
                    Some(found) => prop_assert!(2 * known[found as usize] > most),
                    None => prop_assert_eq!(most, 0),
                }
            }
        }
    }
}
