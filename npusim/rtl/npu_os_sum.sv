// Output-stationary: one output's accumulator, its drain register, and its piece of the pipe that leads down the column.
//
// `capture` copies the finished sum to the drain register, and the accumulator is free for the next tile. `inject` puts it
// into the pipe. Row r is injected 2r cycles after row 0: half as fast as the pipe moves, so that it follows row r - 1.

module npu_os_sum
  import npu_types::*;
#(
    parameter int IN_BITS   = 1,
    parameter int PART_BITS = 1,
    parameter int BITS      = 1,
    parameter int MODE      = WRAP
) (
    input  logic                      clk,
    input  acc_t                      control,
    input  logic signed [IN_BITS-1:0] products,
    input  logic                      capture,
    input  logic                      inject,
    input  logic signed [   BITS-1:0] above,
    output logic signed [   BITS-1:0] below,
    output logic                      overflow
);
  logic signed [BITS-1:0] sum, drain;
  logic exceeds;
  npu_accumulator #(
      .IN_BITS(IN_BITS), .PART_BITS(PART_BITS), .BITS(BITS), .DEPTH(1), .MODE(MODE)
  ) accumulator (.clk, .control, .psum(products), .sum, .overflow(exceeds));
  assign overflow = control.valid && control.last_phase && exceeds;
  always_ff @(posedge clk) begin
    if (capture) drain <= sum;
    below <= inject ? drain : above;
  end
endmodule
