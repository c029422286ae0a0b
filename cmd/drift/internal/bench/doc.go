// Package bench measures samplers against each other: it draws the same seeds
// through every cell of a matrix of models, samplers, schedules, guiders and
// budgets, and scores what comes out.
//
// Cells see common random numbers: picture k starts from the noise of seed+k in
// every cell, so differences between cells are far less noisy than the scores
// themselves. Budgets are true evaluations of the network per picture, guidance
// counted: at one budget a sampler of two evaluations per step makes half of
// the steps of one that needs one.
//
// Every batch is on the disk when it is done. A bench that was stopped, in
// whatever way, goes on after the last whole batch, and its results are those
// of a bench that was not, bit for bit. A cell's file is named by a hash of
// everything that decides its pictures, but not of their number: a larger
// matrix or more pictures reuse what is there.
package bench
