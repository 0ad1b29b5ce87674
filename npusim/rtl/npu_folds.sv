// Counters over the folds of one MATMUL, innermost first: k, output channels, rounds of ACC_ROWS rows, batches.
//
// k is the innermost, because a bank holds one accumulator per row and column: an output tile must be complete before the
// next one begins. FOLD_K = 0 leaves out the loop over k, for counting output tiles.

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
  wire last_n = job.n - n0 <= 32'(COLS);
  wire last_m = job.m - m0 <= 32'(ACC_ROWS);
  assign first_k = k0 == '0;
  assign last_k = !FOLD_K || job.k - k0 <= 32'(ROWS);
  assign last = last_k && last_n && last_m && batch + 1 == job.batches;

  always_ff @(posedge clk) begin
    if (restart) begin
      {batch, m0, n0, k0} <= '0;
    end else if (advance) begin
      k0 <= last_k ? '0 : k0 + 32'(ROWS);
      if (last_k) n0 <= last_n ? '0 : n0 + 32'(COLS);
      if (last_k && last_n) m0 <= last_m ? '0 : m0 + 32'(ACC_ROWS);
      if (last_k && last_n && last_m) batch <= batch + 1;
    end
  end
endmodule
