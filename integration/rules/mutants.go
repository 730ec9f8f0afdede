package main

import "slices"

// allMutants are the mutants in the order of the rules.
func allMutants() []mutant {
	return slices.Concat(readingMutants, writingMutants, durabilityMutants, treeMutants, namesMutants, outsideMutants, adoptionMutants, directoryMutants, damageMutants, daemonMutants, lostMutants)
}

// one is a mutant of a single edit.
func one(rule, what, file, old, new string, tests ...string) mutant {
	return mutant{rule: rule, what: what, edits: []edit{{file, old, new}}, tests: tests}
}
