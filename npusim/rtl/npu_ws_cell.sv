// One cell of the weight-stationary array. Activations and control go to the right, sums and the weight chain go down, one
// cell a cycle.
//
// The weight chain has two registers per cell, `chain` and `forward`: control reaches row r one cycle after row r - 1, so
// without `forward` every row would take the very word that row 0 takes. With shadow weights `chain` is the shadow, and the
// cell computes with `active`; without, it computes with `chain`.

module npu_ws_cell
  import npu_machine::*;
  import npu_types::*;
(
    input  logic                        clk,
    input  stream_t                     stream_in,
    output stream_t                     stream_out,
    input  logic        [ ACT_BITS-1:0] act_in,
    output logic        [ ACT_BITS-1:0] act_out,
    input  logic        [         15:0] weight_in,
    output logic        [         15:0] weight_out,
    input  logic signed [PSUM_BITS-1:0] psum_in,
    output logic signed [PSUM_BITS-1:0] psum_out
);
  logic [15:0] chain, forward, weight;

  always_ff @(posedge clk) begin
    if (stream_in.load) chain <= weight_in;
    forward <= chain;
    stream_out <= stream_in;
    act_out <= act_in;
  end
  assign weight_out = forward;

  if (SHADOW_WEIGHTS) begin : g_shadow
    logic [15:0] active;
    // The first row of a fold computes with the shadow itself: in the same cycle the chain may begin to move again.
    assign weight = stream_in.latch ? chain : active;
    always_ff @(posedge clk) if (stream_in.latch) active <= chain;
  end else begin : g_single
    assign weight = chain;
  end

  logic signed [CELL_BITS-1:0] products;
  npu_multiply multiply (
      .act(act_in), .weight, .w_wide(stream_in.w_wide), .w_high(stream_in.w_high), .sum(products)
  );
  always_ff @(posedge clk) psum_out <= psum_in + PSUM_BITS'(products);
endmodule
