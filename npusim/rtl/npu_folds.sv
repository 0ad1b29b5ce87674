// Counters over the folds of one MATMUL, innermost first: k, output channels, rounds of TILE_ROWS rows, batches.
//
// k is the innermost: a tile of accumulators must be complete before the next one begins. A weight-stationary fold holds one
// element of k in each row of the array, or two. FOLD_K = 0 leaves out the loop over k, for counting output tiles.

module npu_folds
  import npu_machine::*;
  import npu_types::*;
#(
    parameter bit FOLD_K = 1
) (
    input  logic        clk,
    input  logic        restart,
    input  logic        advance,
    input  job_t        job,
    output logic [31:0] batch,
    output logic [31:0] m0,
    output logic [31:0] n0,
    output logic [31:0] k0,
    output logic        first_k,
    output logic        last_k,
    output logic        last      // of all folds
);
  wire [31:0] height = paired(job) ? 32'(2 * ROWS) : 32'(ROWS);
  wire last_n = job.n - n0 <= 32'(COLS);
  wire last_m = job.m - m0 <= 32'(TILE_ROWS);
  assign first_k = k0 == '0;
  assign last_k = !FOLD_K || job.k - k0 <= height;
  assign last = last_k && last_n && last_m && batch + 1 == job.batches;

  always_ff @(posedge clk) begin
    if (restart) begin
      {batch, m0, n0, k0} <= '0;
    end else if (advance) begin
      k0 <= last_k ? '0 : k0 + height;
      if (last_k) n0 <= last_n ? '0 : n0 + 32'(COLS);
      if (last_k && last_n) m0 <= last_m ? '0 : m0 + 32'(TILE_ROWS);
      if (last_k && last_n && last_m) batch <= batch + 1;
    end
  end
endmodule
