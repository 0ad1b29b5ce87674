// The accumulators of a column, or the one of a cell. A row's partial sums of several phases are added up first; the whole
// sum of a fold is added to the row's accumulator, and the result is narrowed: once per row and fold, as the ISA defines it.
//
// The accumulator is read, added to and written in one cycle, and `sum` is ready in that same cycle: the next fold may bring
// the same row again one cycle later.

module npu_accumulator
  import npu_machine::*;
  import npu_types::*;
#(
    parameter int IN_BITS   = PSUM_BITS,
    parameter int PART_BITS = FOLD_BITS,  // a fold's whole sum
    parameter int BITS      = ACC_BITS,
    parameter int DEPTH     = ACC_ROWS,
    parameter int MODE      = OVERFLOW
) (
    input  logic                      clk,
    input  acc_t                      control,
    input  logic signed [IN_BITS-1:0] psum,
    output logic signed [   BITS-1:0] sum,
    output logic                      overflow
);
  localparam int WIDE = (BITS > PART_BITS ? BITS : PART_BITS) + 1;
  localparam int INDEX_BITS = DEPTH > 1 ? $clog2(DEPTH) : 1;

  logic signed [BITS-1:0] bank[DEPTH];
  wire [INDEX_BITS-1:0] index = INDEX_BITS'(control.bank_row);
  logic signed [PART_BITS-1:0] partial;

  wire signed [PART_BITS-1:0] part =
      (control.first_phase ? '0 : partial) + (PART_BITS'(psum) <<< {control.byte_shift, 3'b000});
  wire signed [BITS-1:0] old_sum = control.first_fold ? '0 : bank[index];
  wire signed [WIDE-1:0] new_sum = WIDE'(old_sum) + WIDE'(part);

  npu_narrow #(.IN_BITS(WIDE), .OUT_BITS(BITS), .MODE(MODE)) narrow (.in(new_sum), .out(sum), .overflow);

  always_ff @(posedge clk) begin
    if (control.valid) partial <= part;
    if (control.valid && control.last_phase) bank[index] <= sum;
  end
endmodule
