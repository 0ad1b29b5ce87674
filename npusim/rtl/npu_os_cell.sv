// One cell of the output-stationary array. Activations and control go to the right, weights go down, one cell a cycle; the
// output stays here until its last product.

module npu_os_cell
  import npu_machine::*;
  import npu_types::*;
(
    input  logic                       clk,
    input  os_stream_t                 stream_in,
    output os_stream_t                 stream_out,
    input  logic                       inject_in,
    output logic                       inject_out,
    input  logic        [ACT_BITS-1:0] act_in,
    output logic        [ACT_BITS-1:0] act_out,
    input  logic        [        15:0] weight_in,
    output logic        [        15:0] weight_out,
    input  logic signed [ACC_BITS-1:0] above,
    output logic signed [ACC_BITS-1:0] below,
    output logic                       overflow
);
  always_ff @(posedge clk) begin
    stream_out <= stream_in;
    inject_out <= inject_in;
    act_out    <= act_in;
    weight_out <= weight_in;
  end

  logic signed [CELL_BITS-1:0] products;
  npu_multiply multiply (
      .act(act_in), .weight(weight_in), .w_wide(stream_in.w_wide), .w_high(stream_in.w_high), .sum(products)
  );
  npu_os_sum #(.IN_BITS(CELL_BITS), .PART_BITS(FOLD_BITS), .BITS(ACC_BITS), .MODE(OVERFLOW)) total (
      .clk, .control(stream_in.acc), .products, .capture(stream_in.capture), .inject(inject_in),
      .above, .below, .overflow
  );
endmodule
